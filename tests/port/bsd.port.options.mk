# Of the framework's options: which are chosen. DOCS and EXAMPLES always are,
# unless `make WITHOUT=EXAMPLES` or the like says otherwise.

PORT_OPTIONS:=	DOCS EXAMPLES ${OPTIONS_DEFAULT}
.for option in ${WITHOUT}
PORT_OPTIONS:=	${PORT_OPTIONS:N${option}}
.endfor
