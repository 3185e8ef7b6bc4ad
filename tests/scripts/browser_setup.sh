#!/usr/bin/env bash
# Installs what the browser tests need: Debian's chromium with its driver, and axe-core, which checks accessibility, from
# the npm registry into tests/browser, which git ignores. Does nothing where all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

AXE_VERSION=4.10.3

if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null || ! fc-list | grep -qi 'noto.*cjk'; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver fontconfig fonts-noto-core fonts-noto-cjk
fi
if [ ! -f browser/axe.min.js ]; then
    command -v npm >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq npm
    mkdir -p browser
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && npm pack --silent "axe-core@$AXE_VERSION" >/dev/null && tar xzf axe-core-*.tgz package/axe.min.js)
    mv "$work/package/axe.min.js" browser/axe.min.js
fi
echo "browser: $(chromium --version 2>/dev/null), $(chromedriver --version | cut -d' ' -f1-2), axe-core $AXE_VERSION"
