#!/bin/sh
# SPDX-License-Identifier: MIT
# Says which system tool is missing and which Debian package brings it. Usage: check_system.sh PYTHON
python=$1
status=0
missing() {
    echo "quartet: $1 is missing: sudo apt-get install $2" >&2
    status=1
}
command -v g++ >/dev/null || missing "g++ (builds the simulators)" g++
command -v perl >/dev/null || missing "perl (runs Verilator)" perl
if ! command -v "$python" >/dev/null; then
    missing "$python" python3
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "quartet: $python is $("$python" -V 2>&1), older than 3.11: make PYTHON=python3.11 ..." >&2
    status=1
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    missing "Python's venv" python3-venv
fi
exit $status
