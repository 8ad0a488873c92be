#!/bin/sh
#
# Lets the packets of the tunnel pass, and nobody else's of that kind: to be run
# by dtcpc(8) itself, which tells the addresses. In rc.conf:
#
#	dtcpc_flags="-t network -Dl -s %%PREFIX%%/share/examples/dtcpc/firewall.sh"
#
# Copy it and name the copy if you change it: an update replaces this file.
# For a tunnel over UDP (-U) open that port instead; no script is needed.
#
# ipfw: rules 4100 (of gif0), 4101 (of gif1) and so on are added and deleted; let
#	them come before your `deny`, and be nobody else's.
# pf:	pf.conf must have the line
#		anchor "dtcpc/*"

set -u

event=$1	# up, change or down
interface=$DTCP_INTERFACE
local=$DTCP_LOCAL
remote=$DTCP_REMOTE
number=410${interface##*[!0-9]}

if kldstat -q -m ipfw; then
	ipfw -q delete "$number" 2>/dev/null
	if [ "$event" != down ]; then
		ipfw -q add "$number" allow 41 from "$remote" to "$local" in
		ipfw -q add "$number" allow 41 from "$local" to "$remote" out
	fi
fi

if kldstat -q -m pf; then
	if [ "$event" = down ]; then
		pfctl -q -a "dtcpc/$interface" -F rules
	else
		pfctl -q -a "dtcpc/$interface" -f - <<-RULES
			pass in quick inet proto 41 from $remote to $local
			pass out quick inet proto 41 from $local to $remote
		RULES
	fi
fi
