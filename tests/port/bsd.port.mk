# A stand-in for the framework of FreeBSD's ports: as much of it, in the same
# names, as the Makefile of this project meets between `extract` and `stage`.
# It is found with `bmake -m tests/port`; PREFIX, WRKDIR, STAGEDIR and PYTHON_CMD
# may be given.

PREFIX?=	/usr/local
WRKDIR?=	${.CURDIR}/work
WRKSRC?=	${WRKDIR}/${PORTNAME}-${DISTVERSION}
STAGEDIR?=	${WRKDIR}/stage
DOCSDIR?=	${PREFIX}/share/doc/${PORTNAME}
EXAMPLESDIR?=	${PREFIX}/share/examples/${PORTNAME}

# Of USES=python.
PYTHON_SUFFIX?=	311
PYTHON_CMD?=	/usr/local/bin/python3.11
PYTHON_PKGNAMEPREFIX=	py${PYTHON_SUFFIX}-
PY_FLAVOR=	py${PYTHON_SUFFIX}

CP=		cp
ECHO_CMD=	echo
INSTALL_DATA=	install -m 0644
INSTALL_MAN=	install -m 0644
INSTALL_SCRIPT=	install -m 555
MKDIR=		mkdir -p
REINPLACE_CMD=	sed -i.bak
SED=		sed
SETENV=		env

# Of the many, those for which this could be a case. (There was an `ipv6` once.)
VALID_CATEGORIES=	net net-mgmt net-vpn sysutils

# In this order: make(1) takes them from left to right.
stage: check-categories do-extract post-patch directories do-install compress-man

check-categories:
.for category in ${CATEGORIES}
.  if empty(VALID_CATEGORIES:M${category})
	@${ECHO_CMD} "Makefile error: category ${category} not in list of valid categories."; false
.  endif
.endfor

# Those that the framework makes in every stage.
directories:
.for directory in bin etc libexec sbin share/examples share/man/man5 share/man/man8
	@${MKDIR} ${STAGEDIR}${PREFIX}/${directory}
.endfor

compress-man:
	@find ${STAGEDIR}${PREFIX}/share/man -type f -exec gzip -n {} +

# One entry a line, as the framework writes it for pkg(8).
plist:
.for entry in ${PLIST_FILES}
	@${ECHO_CMD} ${entry}
.endfor
