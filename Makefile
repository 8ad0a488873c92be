# A FreeBSD port whose sources lie beside it: `make install` in a checkout.
# (GNU make reads GNUmakefile instead; that one is for working on dtcpc.)

PORTNAME=	dtcpc
DISTVERSION=	0.1.0
CATEGORIES=	net ipv6
MASTER_SITES=	# none
DISTFILES=	# none

MAINTAINER=	ports@FreeBSD.org
COMMENT=	IPv6 tunnels for hosts whose IPv4 address changes (DTCP)

LICENSE=	BSD2CLAUSE
LICENSE_FILE=	${WRKSRC}/LICENSE

RUN_DEPENDS=	${PYTHON_PKGNAMEPREFIX}sh>=2.2:devel/py-sh@${PY_FLAVOR}
TEST_DEPENDS=	${PYTHON_PKGNAMEPREFIX}hypothesis>0:devel/py-hypothesis@${PY_FLAVOR} \
		${PYTHON_PKGNAMEPREFIX}pexpect>0:misc/py-pexpect@${PY_FLAVOR} \
		${PYTHON_PKGNAMEPREFIX}pytest>0:devel/py-pytest@${PY_FLAVOR}

USES=		python:3.10+ shebangfix

SHEBANG_FILES=	dtcpc.py dtcps.py
python_OLD_CMD=	"/usr/bin/env python3"

CONFLICTS_INSTALL=	dtcp

NO_ARCH=	yes
NO_BUILD=	yes

PLIST_FILES=	"@sample(root,wheel,600) etc/dtcpc.auth.sample" \
		"@sample(root,wheel,600) etc/dtcps.users.sample" \
		"@sample etc/dtcps.routes.sample" \
		etc/periodic/daily/425.status-dtcpc \
		etc/rc.d/dtcpc \
		etc/rc.d/dtcps \
		libexec/dtcpc/dtcp/__init__.py \
		libexec/dtcpc/dtcp/cli.py \
		libexec/dtcpc/dtcp/daemon.py \
		libexec/dtcpc/dtcp/grant.py \
		libexec/dtcpc/dtcp/ledger.py \
		libexec/dtcpc/dtcp/password.py \
		libexec/dtcpc/dtcp/plan.py \
		libexec/dtcpc/dtcp/speaker.py \
		libexec/dtcpc/dtcp/system.py \
		libexec/dtcpc/dtcp/wire.py \
		sbin/dtcpc \
		sbin/dtcps \
		share/examples/dtcpc/firewall.sh \
		share/man/man5/dtcpc.auth.5.gz \
		share/man/man8/dtcpc.8.gz \
		share/man/man8/dtcps.8.gz

do-extract:
	@${MKDIR} ${WRKSRC}
	@cd ${.CURDIR} && ${CP} -R LICENSE dtcpc.py dtcps.py etc lib man rc.d ${WRKSRC}

# The library lies in a place of its own instead of the site-packages of one
# Python version, and no byte code is kept of it: nothing there belongs to a
# Python that is gone, and nothing is left when the package goes.
post-patch:
	@${REINPLACE_CMD} -e '2,$$s|/usr/local|${PREFIX}|g' \
		-e 's|^_lib = .*|_lib, sys.dont_write_bytecode = "${PREFIX}/libexec/dtcpc", True|' \
		${WRKSRC}/dtcpc.py ${WRKSRC}/dtcps.py
	@${REINPLACE_CMD} -e 's|/usr/local|${PREFIX}|g' ${WRKSRC}/man/*.[58]
	@${REINPLACE_CMD} -e 's|%%PREFIX%%|${PREFIX}|g' -e 's|%%PYTHON_CMD%%|${PYTHON_CMD}|g' \
		${WRKSRC}/etc/* ${WRKSRC}/rc.d/*

do-install:
	${INSTALL_SCRIPT} ${WRKSRC}/dtcpc.py ${STAGEDIR}${PREFIX}/sbin/dtcpc
	${INSTALL_SCRIPT} ${WRKSRC}/dtcps.py ${STAGEDIR}${PREFIX}/sbin/dtcps
	@${MKDIR} ${STAGEDIR}${PREFIX}/libexec/dtcpc/dtcp
	${INSTALL_DATA} ${WRKSRC}/lib/dtcp/*.py ${STAGEDIR}${PREFIX}/libexec/dtcpc/dtcp
	@${MKDIR} ${STAGEDIR}${PREFIX}/etc/rc.d
	${INSTALL_SCRIPT} ${WRKSRC}/rc.d/dtcpc ${WRKSRC}/rc.d/dtcps ${STAGEDIR}${PREFIX}/etc/rc.d
	@${MKDIR} ${STAGEDIR}${PREFIX}/etc/periodic/daily
	${INSTALL_SCRIPT} ${WRKSRC}/etc/425.status-dtcpc ${STAGEDIR}${PREFIX}/etc/periodic/daily
	${INSTALL_DATA} ${WRKSRC}/etc/*.sample ${STAGEDIR}${PREFIX}/etc
	@${MKDIR} ${STAGEDIR}${EXAMPLESDIR}
	${INSTALL_SCRIPT} ${WRKSRC}/etc/firewall.sh ${STAGEDIR}${EXAMPLESDIR}
	${INSTALL_MAN} ${WRKSRC}/man/dtcpc.auth.5 ${STAGEDIR}${PREFIX}/share/man/man5
	${INSTALL_MAN} ${WRKSRC}/man/dtcpc.8 ${WRKSRC}/man/dtcps.8 \
		${STAGEDIR}${PREFIX}/share/man/man8

# What needs no Linux. The checkout stays as it is.
do-test:
	@cd ${.CURDIR} && ${SETENV} PYTHONDONTWRITEBYTECODE=1 \
		${PYTHON_CMD} -m pytest -p no:cacheprovider -m "not lab"

.include <bsd.port.mk>
