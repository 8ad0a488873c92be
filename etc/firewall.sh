#!/bin/sh
#
# Passes the packets of the tunnel, and no other protocol 41. It is run by
# dtcpc(8), which supplies the addresses. In rc.conf:
#
#	dtcpc_flags="-t network -Dl -s %%PREFIX%%/share/examples/dtcpc/firewall.sh"
#
# To change it, use a copy: an update replaces this file.
# For a tunnel over UDP (-U), open that port instead; no script is needed.
#
# ipfw: the first free number from 4100 to 4199 is used; those must come before
#	your `deny`. A comment says whose the rules are, and is what they are
#	deleted by.
# pf:	pf.conf must contain the line
#		anchor "dtcpc/*"

set -u

event=$1	# up, change or down
interface=$DTCP_INTERFACE
local=$DTCP_LOCAL
remote=$DTCP_REMOTE
status=0	# is logged by dtcpc if it is not 0

if kldstat -q -m ipfw; then
	for number in $(ipfw list | sed -n "s|^0*\([0-9]*\) .*// dtcpc $interface\$|\1|p" | uniq); do
		ipfw -q delete "$number"
	done
	if [ "$event" != down ]; then
		number=4100
		while [ $number -lt 4199 ] && ipfw -q list $number >/dev/null 2>&1; do
			number=$((number + 1))
		done
		ipfw -q add $number allow ip4 from "$remote" to "$local" proto 41 in // dtcpc "$interface" ||
			status=1
		ipfw -q add $number allow ip4 from "$local" to "$remote" proto 41 out // dtcpc "$interface" ||
			status=1
	fi
fi

if kldstat -q -m pf; then
	if [ "$event" = down ]; then
		pfctl -q -a "dtcpc/$interface" -F rules || status=1
	else
		pfctl -q -a "dtcpc/$interface" -f - <<-RULES || status=1
			pass in quick inet proto 41 from $remote to $local
			pass out quick inet proto 41 from $local to $remote
		RULES
	fi
fi
exit $status
