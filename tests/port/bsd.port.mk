# A stand-in for the framework of FreeBSD's ports: as much of it, in the same
# names, as the Makefile of this project meets between `extract` and `stage`.
# It is found with `bmake -m tests/port`; PREFIX, WRKDIR, STAGEDIR and PYTHON_CMD
# may be given.

PREFIX?=	/usr/local
WRKDIR?=	${.CURDIR}/work
WRKSRC?=	${WRKDIR}/${PORTNAME}-${DISTVERSION}
STAGEDIR?=	${WRKDIR}/stage
EXAMPLESDIR?=	${PREFIX}/share/examples/${PORTNAME}

PYTHON_CMD?=	/usr/local/bin/python3.11
PYTHON_PKGNAMEPREFIX=	py311-
PY_FLAVOR=	py311

CP=		cp
ECHO_CMD=	echo
INSTALL_DATA=	install -m 0644
INSTALL_MAN=	install -m 0644
INSTALL_SCRIPT=	install -m 555
MKDIR=		mkdir -p
REINPLACE_CMD=	sed -i.bak
SETENV=		env

# In this order: make(1) takes them from left to right.
stage: do-extract fix-shebang post-patch directories do-install compress-man

# Of USES=shebangfix: it replaces the first line.
fix-shebang:
.for old in ${python_OLD_CMD}
	@cd ${WRKSRC} && ${REINPLACE_CMD} -e '1s|^#!${old:C/"//g}$$|#!${PYTHON_CMD}|' ${SHEBANG_FILES}
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
