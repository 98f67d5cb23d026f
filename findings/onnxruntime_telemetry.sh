#!/usr/bin/env bash
# onnxruntime 1.32.0 makes a device id and a database of events in the home folder as soon as it is imported.
#
# Seen:     `import onnxruntime` alone leaves .cache/Microsoft/DeveloperTools/.onnxruntime/{deviceid,onnxruntime.db} in a fresh
#           home, also where disable_telemetry_events() is the next call. With ORT_DISABLE_TELEMETRY=1 in the environment before
#           the import, nothing is left. It began with 1.29.0; 1.28.0 leaves nothing.
# Expected: a library that runs networks keeps no record of its use unless it is asked to. (Its Privacy.md does say that
#           telemetry is on in official builds, and is sent over HTTPS.)
# Ours:     data/detection.py sets the variable before it imports onnxruntime, unless the user did; tests/test_offline.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

# look EXPECTED PYTHON [VARIABLE=VALUE]: runs a program in a fresh home, and counts the files that are there afterwards.
look() {
    rm -rf "$folder/home" && mkdir "$folder/home"
    env -i HOME="$folder/home" PATH="$PATH" "${3:-LANG=C}" "$folder/venv/bin/python" -c "$2"
    count=$(find "$folder/home" -type f | wc -l)
    echo "onnxruntime $version: ${3:-} $2 -> $count files in a fresh home"
    [ "$count" -eq "$1" ] || { echo "it behaves otherwise now: expected $1"; exit 1; }
}

for version in 1.28.0 1.32.0; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version"
    if [ "$version" = 1.28.0 ]; then
        look 0 "import onnxruntime"
    else
        look 2 "import onnxruntime"
        look 2 "import onnxruntime; onnxruntime.disable_telemetry_events()"
        look 0 "import onnxruntime" ORT_DISABLE_TELEMETRY=1
    fi
done
echo "as found: from 1.29.0 on, importing it leaves a device id and a database of events, unless ORT_DISABLE_TELEMETRY=1 is set"
