#!/usr/bin/env bash
# An editable install is usually a line in a .pth file that puts a directory on sys.path. setuptools does
# that only if one directory maps to everything. If package-dir names a package's own directory, which a
# layout without src/ needs for an import name that the checkout does not have, every start of the
# interpreter, even one that never imports the package, runs an import hook's module, with pathlib and all
# that it loads. A directory of symbolic links (import name -> folder) gets the plain path line, because
# setuptools follows links when it looks for packages.
# Exits with 0 if it is still so.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# NAME PACKAGE_DIR PACKAGES: make a project whose package `outer.inner` is the folder `inner`.
make() {
    mkdir -p "$work/$1/inner" "$work/$1/linked/outer"
    touch "$work/$1/inner/__init__.py" "$work/$1/linked/outer/__init__.py"
    ln -s ../../inner "$work/$1/linked/outer/inner"
    cat >"$work/$1/pyproject.toml" <<TOML
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "$1"
version = "1"
[tool.setuptools]
package-dir = $2
$3
TOML
}

# NAME HOOK: show how a start looks after the editable install; HOOK is whether it has the hook.
look() {
    python3.11 -m venv "$work/venv-$1"
    local python=$work/venv-$1/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check setuptools==80.9.0
    "$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation -e "$work/$1"
    "$python" -c 'import outer.inner'
    "$python" - "$1" "$2" <<'PYTHON'
import subprocess
import sys

name, hook = sys.argv[1:]
code = "import sys; print('\\n'.join(sys.modules))"
loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
ours = [module for module in loaded if module.startswith("__editable__")]
print(f"    {name}: {len(loaded)} modules at start, pathlib: {'pathlib' in loaded}, hook: {ours}")
sys.exit((bool(ours), "pathlib" in loaded) != (hook == "hook", hook == "hook"))
PYTHON
}

make named '{ "outer" = "linked/outer", "outer.inner" = "inner" }' 'packages = ["outer", "outer.inner"]'
make links '{ "" = "linked" }' $'[tool.setuptools.packages.find]\nwhere = ["linked"]'
echo "setuptools 80.9.0, $(python3.11 --version)"
look named hook
look links plain
