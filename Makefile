# A FreeBSD port whose sources lie beside it: `make install` in a checkout.
# (GNU make reads GNUmakefile instead; that one is for working on dtcpc.)

PORTNAME=	dtcpc
DISTVERSION=	0.1.0
CATEGORIES=	net net-vpn
MASTER_SITES=	# none
DISTFILES=	# none

MAINTAINER=	ports@FreeBSD.org
COMMENT=	IPv6 tunnels for hosts whose IPv4 address changes (DTCP)

LICENSE=	BSD2CLAUSE
LICENSE_FILE=	${WRKSRC}/LICENSE

RUN_DEPENDS=	${PYTHON_PKGNAMEPREFIX}sh>=2.2:devel/py-sh@${PY_FLAVOR} \
		${PYTHON_PKGNAMEPREFIX}sqlite3>0:databases/py-sqlite3@${PY_FLAVOR}
TEST_DEPENDS=	${PYTHON_PKGNAMEPREFIX}hypothesis>0:devel/py-hypothesis@${PY_FLAVOR} \
		${PYTHON_PKGNAMEPREFIX}pexpect>0:misc/py-pexpect@${PY_FLAVOR} \
		${PYTHON_PKGNAMEPREFIX}pytest>0:devel/py-pytest@${PY_FLAVOR}

USES=		python:3.10+

CONFLICTS_INSTALL=	dtcp

NO_ARCH=	yes
NO_BUILD=	yes

# All of our Python lies in libexec/dtcpc: in the site-packages of one Python
# it would be half of a package that is not called py311-dtcpc, and part of it
# could stay behind when the default Python changes.  Here it comes and goes as
# a whole, with the byte code of the one Python that the first line of the
# programs in sbin names.  So nothing is compiled when one of them starts, and
# they never write any themselves.  The byte code knows its source by a hash:
# pkg(8) need not keep the times of files, and a source that was changed on the
# spot counts.
BYTECODE=	cpython-${PYTHON_SUFFIX}.pyc

# What is installed, a word each; a new program, module, page or document needs no more.
PROGRAMS=	dtcpauth dtcpc dtcps
LIBRARY=	__init__ cli daemon grant inquiries lean ledger limits network password plan pools report \
		run settings shell speaker store system timers wire
RC_SCRIPTS=	dtcpc dtcps
MANUALS=	dtcpc.auth.5 dtcps.conf.5 dtcpauth.8 dtcpc.8 dtcps.8
DOCUMENTS=	jails.md migration.md server.md trust.md udp.md

PLIST_FILES=	"@sample(root,wheel,600) etc/dtcpc.auth.sample" \
		"@sample etc/dtcps.conf.sample" \
		etc/periodic/daily/425.status-dtcpc \
		${RC_SCRIPTS:S|^|etc/rc.d/|} \
		${LIBRARY:S|^|libexec/dtcpc/dtcp/|:S|$|.py|} \
		${LIBRARY:S|^|libexec/dtcpc/dtcp/__pycache__/|:S|$|.${BYTECODE}|} \
		${PROGRAMS:S|^|libexec/dtcpc/|:S|$|.py|} \
		${PROGRAMS:S|^|libexec/dtcpc/__pycache__/|:S|$|.${BYTECODE}|} \
		${PROGRAMS:S|^|sbin/|} \
		${DOCUMENTS:S|^|share/doc/dtcpc/|} \
		share/examples/dtcpc/firewall.sh \
		${MANUALS:M*.5:S|^|share/man/man5/|:S|$|.gz|} \
		${MANUALS:M*.8:S|^|share/man/man8/|:S|$|.gz|}

do-extract:
	@${MKDIR} ${WRKSRC}
	@cd ${.CURDIR} && ${CP} -R LICENSE ${PROGRAMS:S|$|.py|} docs etc lib man rc.d ${WRKSRC}

post-patch:
	@cd ${WRKSRC} && ${REINPLACE_CMD} -e 's|/usr/local|${PREFIX}|g' \
		${PROGRAMS:S|$|.py|} ${LIBRARY:S|^|lib/dtcp/|:S|$|.py|} \
		${MANUALS:S|^|man/|} ${DOCUMENTS:S|^|docs/|}
	@${REINPLACE_CMD} -e 's|%%PREFIX%%|${PREFIX}|g' -e 's|%%PYTHON_CMD%%|${PYTHON_CMD}|g' \
		${WRKSRC}/etc/* ${WRKSRC}/rc.d/*

do-install:
	@${MKDIR} ${STAGEDIR}${PREFIX}/libexec/dtcpc/dtcp
	${INSTALL_DATA} ${WRKSRC}/lib/dtcp/*.py ${STAGEDIR}${PREFIX}/libexec/dtcpc/dtcp
.for program in ${PROGRAMS}
	${INSTALL_DATA} ${WRKSRC}/${program}.py ${STAGEDIR}${PREFIX}/libexec/dtcpc
	@${SED} -e 's|%%PROGRAM%%|${program}|' ${WRKSRC}/etc/program.in >${WRKDIR}/${program}
	${INSTALL_SCRIPT} ${WRKDIR}/${program} ${STAGEDIR}${PREFIX}/sbin
.endfor
	@umask 022; ${PYTHON_CMD} -m compileall -q -o 0 --invalidation-mode checked-hash \
		-d ${PREFIX}/libexec/dtcpc ${STAGEDIR}${PREFIX}/libexec/dtcpc
	@${MKDIR} ${STAGEDIR}${PREFIX}/etc/rc.d
	${INSTALL_SCRIPT} ${RC_SCRIPTS:S|^|${WRKSRC}/rc.d/|} ${STAGEDIR}${PREFIX}/etc/rc.d
	@${MKDIR} ${STAGEDIR}${PREFIX}/etc/periodic/daily
	${INSTALL_SCRIPT} ${WRKSRC}/etc/425.status-dtcpc ${STAGEDIR}${PREFIX}/etc/periodic/daily
	${INSTALL_DATA} ${WRKSRC}/etc/*.sample ${STAGEDIR}${PREFIX}/etc
	@${MKDIR} ${STAGEDIR}${EXAMPLESDIR}
	${INSTALL_SCRIPT} ${WRKSRC}/etc/firewall.sh ${STAGEDIR}${EXAMPLESDIR}
	@${MKDIR} ${STAGEDIR}${DOCSDIR}
	${INSTALL_DATA} ${DOCUMENTS:S|^|${WRKSRC}/docs/|} ${STAGEDIR}${DOCSDIR}
.for page in ${MANUALS}
	${INSTALL_MAN} ${WRKSRC}/man/${page} ${STAGEDIR}${PREFIX}/share/man/man${page:E}
.endfor

# Where jails can have jails with networks, as root, everything; else what needs
# none.  What cannot be on FreeBSD is left out by name (tests/left_out.py).  The
# checkout stays as it is.
do-test:
	@cd ${.CURDIR} && export PYTHONDONTWRITEBYTECODE=1 && \
		if ${PYTHON_CMD} -m lab run true; then \
			${PYTHON_CMD} -m lab run ${PYTHON_CMD} -m pytest -p no:cacheprovider; \
		else \
			${PYTHON_CMD} -m pytest -p no:cacheprovider -m "not lab"; \
		fi

.include <bsd.port.mk>
