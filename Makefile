# A FreeBSD port with its sources beside it: run `make install` in a checkout.
# (GNU make reads GNUmakefile instead, which is for development.)

PORTNAME=	dtcpc
DISTVERSION=	0.1.0
CATEGORIES=	net net-vpn
MASTER_SITES=	# none
DISTFILES=	# none

MAINTAINER=	ports@FreeBSD.org
COMMENT=	IPv6 tunnels for hosts whose IPv4 address changes (DTCP)
# There is no home page yet. Who submits the port adds WWW= here, and takes
# over as its MAINTAINER.

LICENSE=	BSD2CLAUSE
LICENSE_FILE=	${WRKSRC}/LICENSE

RUN_DEPENDS=	${PYTHON_PKGNAMEPREFIX}sh>=2.2:devel/py-sh@${PY_FLAVOR}
TEST_DEPENDS=	bash>0:shells/bash \
		${PYTHON_PKGNAMEPREFIX}hypothesis>0:devel/py-hypothesis@${PY_FLAVOR} \
		${PYTHON_PKGNAMEPREFIX}pexpect>0:misc/py-pexpect@${PY_FLAVOR} \
		${PYTHON_PKGNAMEPREFIX}pip>0:devel/py-pip@${PY_FLAVOR} \
		${PYTHON_PKGNAMEPREFIX}pytest>0:devel/py-pytest@${PY_FLAVOR} \
		${PYTHON_PKGNAMEPREFIX}setuptools>=70.1:devel/py-setuptools@${PY_FLAVOR}

USES=		python:3.10+
USE_RC_SUBR=	dtcpc

CONFLICTS_INSTALL=	dtcp

FILESDIR=	${WRKDIR}/rc.d
NO_ARCH=	yes
NO_BUILD=	yes

PLIST_FILES=	"@sample(root,wheel,600) etc/dtcpc.auth.sample" \
		etc/periodic/daily/425.status-dtcpc \
		${LIBRARY:S|^|libexec/dtcpc/dtcp/|:S|$|.py|} \
		${LIBRARY:S|^|libexec/dtcpc/dtcp/|:C|[^/]+$|__pycache__/&.${BYTECODE}|} \
		${PROGRAMS:S|^|libexec/dtcpc/|:S|$|.py|} \
		${PROGRAMS:S|^|libexec/dtcpc/__pycache__/|:S|$|.${BYTECODE}|} \
		${PROGRAMS:S|^|sbin/|} \
		${PROGRAMS:S|^|share/bash-completion/completions/|} \
		${PROGRAMS:S|^|share/fish/vendor_completions.d/|:S|$|.fish|} \
		${MANUALS:M*.5:S|^|share/man/man5/|:S|$|.gz|} \
		${MANUALS:M*.8:S|^|share/man/man8/|:S|$|.gz|} \
		${PROGRAMS:S|^|share/zsh/site-functions/_|}
PORTDOCS=	jails.md migration.md monitoring.md server.md tls.md trust.md \
		udp.md
PORTEXAMPLES=	completion.tcsh firewall.sh grafana.json

OPTIONS_DEFINE=		DOCS EXAMPLES SERVER
OPTIONS_DEFAULT=	SERVER

SERVER_DESC=	Install the server, too (dtcps, dtcpauth)

SERVER_RUN_DEPENDS=	${PYTHON_PKGNAMEPREFIX}sqlite3>0:databases/py-sqlite3@${PY_FLAVOR}

# All of our Python code is in libexec/dtcpc: in the site-packages of one Python
# it would be half of a package that is not named py311-dtcpc, and part of it
# could be left behind when the default Python changes.  Here it is installed
# and removed as a whole, with the byte code for the Python named in the first
# line of the programs in sbin.  So nothing is compiled at startup, and the
# programs never write byte code themselves.  The byte code identifies its
# source by a hash: pkg(8) need not preserve file times, and a source that is
# edited in place takes effect.
BYTECODE=	cpython-${PYTHON_SUFFIX}.pyc

# What completes command lines is made from the programs' own tables of options.
COMPLETION=	${PYTHON_CMD} -B ${WRKSRC}/etc/completion.py

PYTEST=		${PYTHON_CMD} -m pytest -p no:cacheprovider

# What is installed, one word each, with what PORTDOCS and PORTEXAMPLES have; a
# new program, module, page or document needs only this.
PROGRAMS=	dtcpc
LIBRARY=	__init__ cli daemon errors grant lean ledger look password \
		plan private run status system text tls wire \
		client/__init__ client/backoff client/conversation \
		client/credentials client/ending client/inquiry \
		client/network client/news client/options client/passage \
		client/probe client/remedies client/speaker client/stages \
		client/survey client/transport client/trial client/tunnel
MANUALS=	dtcpc.auth.5 dtcpc.8
SAMPLES=	dtcpc.auth.sample

.include <bsd.port.options.mk>

.if ${PORT_OPTIONS:MSERVER}
USE_RC_SUBR+=	dtcps
PLIST_FILES+=	"@sample etc/dtcps.conf.sample"
PORTEXAMPLES+=	server.ipfw server.pf.conf
PROGRAMS+=	dtcpauth dtcps
LIBRARY+=	server/__init__ server/admission server/building \
		server/certificate server/copies server/counts \
		server/database server/imports server/inquiries \
		server/interfaces server/leases server/limits \
		server/listing server/pools server/presence \
		server/records server/recovery server/report \
		server/sessions server/settings server/shell server/store \
		server/timers server/traffic server/tunnels server/udp \
		server/unreachable server/usage server/words server/workers
MANUALS+=	dtcps.conf.5 dtcpauth.8 dtcps.8
SAMPLES+=	dtcps.conf.sample
.endif

do-extract:
	@${MKDIR} ${WRKSRC} ${FILESDIR}
	@cd ${.CURDIR} && \
		${CP} -R LICENSE ${PROGRAMS:S|$|.py|} docs etc lib man ${WRKSRC}
.for script in ${USE_RC_SUBR}
	@${CP} ${.CURDIR}/rc.d/${script} ${FILESDIR}/${script}.in
.endfor

post-patch:
	@cd ${WRKSRC} && ${REINPLACE_CMD} -e 's|/usr/local|${PREFIX}|g' \
		${PROGRAMS:S|$|.py|} ${LIBRARY:S|^|lib/dtcp/|:S|$|.py|} \
		${MANUALS:S|^|man/|} ${PORTDOCS:S|^|docs/|}
	@${REINPLACE_CMD} -e 's|%%PREFIX%%|${PREFIX}|g' \
		-e 's|%%PYTHON_CMD%%|${PYTHON_CMD}|g' ${WRKSRC}/etc/*

do-install:
.for module in ${LIBRARY}
	@${MKDIR} ${STAGEDIR}${PREFIX}/libexec/dtcpc/dtcp/${module:H}
	${INSTALL_DATA} ${WRKSRC}/lib/dtcp/${module}.py \
		${STAGEDIR}${PREFIX}/libexec/dtcpc/dtcp/${module:H}
.endfor
	@${MKDIR} ${STAGEDIR}${PREFIX}/share/bash-completion/completions \
		${STAGEDIR}${PREFIX}/share/fish/vendor_completions.d \
		${STAGEDIR}${PREFIX}/share/zsh/site-functions
.for program in ${PROGRAMS}
	${INSTALL_DATA} ${WRKSRC}/${program}.py \
		${STAGEDIR}${PREFIX}/libexec/dtcpc
	@${SED} -e 's|%%PROGRAM%%|${program}|' ${WRKSRC}/etc/program.in \
		>${WRKSRC}/${program}
	${INSTALL_SCRIPT} ${WRKSRC}/${program} ${STAGEDIR}${PREFIX}/sbin
	@for shell in bash fish zsh; do ${COMPLETION} $$shell ${program} \
		>${WRKSRC}/${program}.$$shell; done
	${INSTALL_DATA} ${WRKSRC}/${program}.bash \
		${STAGEDIR}${PREFIX}/share/bash-completion/completions/${program}
	${INSTALL_DATA} ${WRKSRC}/${program}.fish \
		${STAGEDIR}${PREFIX}/share/fish/vendor_completions.d
	${INSTALL_DATA} ${WRKSRC}/${program}.zsh \
		${STAGEDIR}${PREFIX}/share/zsh/site-functions/_${program}
.endfor
	@umask 022; ${PYTHON_CMD} -m compileall -q -o 0 \
		--invalidation-mode checked-hash -d ${PREFIX}/libexec/dtcpc \
		${STAGEDIR}${PREFIX}/libexec/dtcpc
	@${MKDIR} ${STAGEDIR}${PREFIX}/etc/periodic/daily
	${INSTALL_SCRIPT} ${WRKSRC}/etc/425.status-dtcpc \
		${STAGEDIR}${PREFIX}/etc/periodic/daily
	${INSTALL_DATA} ${SAMPLES:S|^|${WRKSRC}/etc/|} ${STAGEDIR}${PREFIX}/etc
.for page in ${MANUALS}
	${INSTALL_MAN} ${WRKSRC}/man/${page} \
		${STAGEDIR}${PREFIX}/share/man/man${page:E}
.endfor

do-install-DOCS-on:
	@${MKDIR} ${STAGEDIR}${DOCSDIR}
	${INSTALL_DATA} ${PORTDOCS:S|^|${WRKSRC}/docs/|} ${STAGEDIR}${DOCSDIR}

do-install-EXAMPLES-on:
	@${MKDIR} ${STAGEDIR}${EXAMPLESDIR}
	@${COMPLETION} tcsh ${PROGRAMS} >${WRKSRC}/etc/completion.tcsh
	cd ${WRKSRC}/etc && ${INSTALL_DATA} ${PORTEXAMPLES:M*.tcsh} \
		${PORTEXAMPLES:M*.conf} ${PORTEXAMPLES:M*.json} \
		${STAGEDIR}${EXAMPLESDIR}
	cd ${WRKSRC}/etc && \
		${INSTALL_SCRIPT} ${PORTEXAMPLES:N*.conf:N*.json:N*.tcsh} \
		${STAGEDIR}${EXAMPLESDIR}

# As root, where VNET jails can be created, run everything; otherwise the tests
# that need none.  Tests that cannot run on FreeBSD are excluded by name
# (tests/left_out.py).  The checkout is not modified.
do-test:
	@cd ${.CURDIR} && export PYTHONDONTWRITEBYTECODE=1 && \
		if ${PYTHON_CMD} -m lab run true; then \
			${PYTHON_CMD} -m lab run ${PYTEST}; \
		else \
			${PYTEST} -m "not lab"; \
		fi

.include <bsd.port.mk>
