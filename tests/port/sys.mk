# make(1) wants system rules. The port needs none of them.
