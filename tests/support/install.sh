# Sourced by tests/run and tests/demo: installs what they need and is not there yet.
#
# Debian packages come from apt, the rest into a virtual environment in .cache/ of the
# checkout. What the environment says of pip, proxies and certificates is obeyed. Root is
# asked for only where it is needed: packages, and the network namespaces of the lab.
#
# Afterwards: VIRTUAL_ENV and PATH are set, and `in_kernel COMMAND...` is there.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cache=$checkout/.cache
install_log=$cache/install.log

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

as_root() {
    if ((EUID == 0)); then
        "$@"
        return
    fi
    # sudo drops the environment; env hands over what the commands here rely on.
    local name settings=()
    for name in $(compgen -e); do
        case ${name^^} in
        PATH | HOME | TERM | LANG | LC_* | CI | NO_COLOR | VIRTUAL_ENV | PYTHON* | KINKD_* | PIP_* | *_PROXY | SSL_CERT_* | *_CA_BUNDLE)
            settings+=("$name=${!name}") ;;
        esac
    done
    sudo env "${settings[@]}" "$@"
}

require_root() {
    ((EUID == 0)) && return
    command -v sudo >/dev/null ||
        fail "needs root for $1; there is no sudo here: run it as root"
    ((${said_sudo:=0})) || printf 'Needs root for %s: using sudo.\n' "$1" >&2
    said_sudo=1
}

# One line per step: what, then how long it took; the log's end where it failed.
step() {
    local what=$1 begun=$SECONDS
    shift
    printf '%s ... ' "$what" >&2
    if "$@" >>"$install_log" 2>&1 </dev/null; then
        printf 'done (%d s)\n' $((SECONDS - begun)) >&2
    else
        printf 'failed; the end of %s:\n' "$install_log" >&2
        tail -n 20 "$install_log" >&2
        exit 1
    fi
}

installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# The trick with policy-rc.d keeps the packages' services (a KDC, say) from being started.
apt_install='
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap "rm -f $policy" EXIT
    trap "exit 130" HUP INT TERM
    printf "#!/bin/sh\nexit 101\n" >"$policy"
    chmod 755 "$policy"
fi
apt="apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3"
known() { [ "$(apt-cache pkgnames "$1" | grep -cx "$1")" -gt 0 ]; }
for package; do known "$package" || { $apt update; break; }; done
$apt install --no-install-recommends "$@" || { $apt update; $apt install --no-install-recommends "$@"; }
'

need_packages() {
    local package missing=()
    for package; do
        installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    require_root "Debian packages"
    step "Installing Debian packages: ${missing[*]}" \
        as_root sh -c "$apt_install" sh "${missing[@]}"
}

# Runs a command in a kernel that has ESP: this machine's, or User-Mode Linux (see in_kernel).
in_kernel() {
    as_root /usr/bin/python3 "$checkout/tests/support/in_kernel" "$@"
}

need_kernel() {
    local where
    require_root "network namespaces"
    where=$(in_kernel --where </dev/null) || fail "cannot find out whether this kernel has ESP"
    [[ $where == host ]] || need_packages user-mode-linux
}

# Heimdal's KDC conflicts with MIT's: it is unpacked beside it and not installed.
unpack_heimdal() {
    local root=$cache/heimdal packages
    packages=(heimdal-kdc heimdal-kcm heimdal-clients libcap-ng0 libdb5.3 libedit2 libbsd0 liblmdb0 libsasl2-2
        libsqlite3-0 $(apt-cache pkgnames lib | grep -E -- '-heimdal$|^libldap-2\.[0-9]-0$|^libldap2$'))
    rm -rf "$root" "$root.new" && mkdir -p "$root.new/archives" &&
        (cd "$root.new/archives" && apt-get download -q "${packages[@]}") || return
    local archive
    for archive in "$root.new"/archives/*.deb; do
        dpkg -x "$archive" "$root.new" || return
    done
    rm -rf "$root.new/archives" && mv "$root.new" "$root"
}

need_heimdal() {
    [[ -e $cache/heimdal ]] || step "Unpacking Heimdal's KDC below .cache/" unpack_heimdal
}

build_environment() {
    rm -rf "$cache/venv" &&
        /usr/bin/python3 -m venv "$VIRTUAL_ENV" &&
        python -m pip install --disable-pip-version-check --progress-bar off \
            --editable "$checkout[test]" &&
        touch "$VIRTUAL_ENV/complete"
}

need_environment() {
    local key
    # An environment knows its own path and its interpreter: neither may change under it.
    key=$({ cat "$checkout/pyproject.toml" && echo "$checkout" && /usr/bin/python3 -VV; } |
        sha256sum | cut -c 1-12)
    export VIRTUAL_ENV=$cache/venv/$key
    export PATH=$VIRTUAL_ENV/bin:$PATH
    unset PYTHONHOME
    exec 9>"$cache/lock" && flock 9 # two of us at once build one environment
    [[ -e $VIRTUAL_ENV/complete ]] || step "Making a virtual environment in .cache/" build_environment
    exec 9>&-
}

command -v apt-get >/dev/null || fail "needs Debian 12 or newer (apt-get is not here)"
# Installed programs are in sbin too, which is not on everyone's path.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
mkdir -p "$cache" || fail "cannot write to $cache"
: >"$install_log"
need_packages ca-certificates faketime gcc iproute2 iputils-ping kmod krb5-admin-server krb5-kdc \
    krb5-user ldap-utils libkrb5-dev libldap-dev libsasl2-dev libsasl2-modules-gssapi-mit procps \
    python3 python3-dev python3-venv slapd tcpdump tshark
/usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "needs Python 3.11 or newer: Debian 12 or newer"
if [[ -n ${KINKD_LONG-} ]]; then # other KDCs
    need_packages ldb-tools samba-ad-dc samba-ad-provision
    need_heimdal
fi
need_kernel
need_environment
