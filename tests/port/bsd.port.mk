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

# What an option that is chosen brings along.
_OF_OPTIONS=
.for option in ${PORT_OPTIONS}
RUN_DEPENDS+=	${${option}_RUN_DEPENDS}
.  if target(do-install-${option}-on)
_OF_OPTIONS+=	do-install-${option}-on
.  endif
.endfor

# In this order: make(1) takes them from left to right.
stage: check-categories do-extract post-patch directories sub-files do-install \
	${_OF_OPTIONS} compress-man install-rc-script

check-categories:
.for category in ${CATEGORIES}
.  if empty(VALID_CATEGORIES:M${category})
	@${ECHO_CMD} "Makefile error: category ${category} not in list of valid categories."; false
.  endif
.endfor

# Those that the framework makes in every stage.
directories:
.for directory in bin etc/rc.d libexec sbin share/examples share/man/man5 share/man/man8
	@${MKDIR} ${STAGEDIR}${PREFIX}/${directory}
.endfor

# The work directory is the framework's: a file of the same name there is overwritten,
# or taken for the script.
sub-files:
.for script in ${USE_RC_SUBR}
	@${SED} -e 's|%%PREFIX%%|${PREFIX}|g' ${FILESDIR}/${script}.in >${WRKDIR}/${script}
.endfor

install-rc-script:
.for script in ${USE_RC_SUBR}
	@${INSTALL_SCRIPT} ${WRKDIR}/${script} ${STAGEDIR}${PREFIX}/etc/rc.d
.endfor

compress-man:
	@find ${STAGEDIR}${PREFIX}/share/man -type f -exec gzip -n {} +

# One entry a line, as the framework writes it for pkg(8).
plist:
.for entry in ${PLIST_FILES} ${USE_RC_SUBR:S|^|etc/rc.d/|}
	@${ECHO_CMD} ${entry}
.endfor
.if ${PORT_OPTIONS:MDOCS}
.  for entry in ${PORTDOCS}
	@${ECHO_CMD} ${DOCSDIR:S|^${PREFIX}/||}/${entry}
.  endfor
.endif
.if ${PORT_OPTIONS:MEXAMPLES}
.  for entry in ${PORTEXAMPLES}
	@${ECHO_CMD} ${EXAMPLESDIR:S|^${PREFIX}/||}/${entry}
.  endfor
.endif
