#!/usr/bin/env bash
# Everything that needs a GPU, the most important first, within a time budget.
#
#   benchmarks/gpu.sh OUT [MODEL] [SECONDS]
#
# OUT gets a log a step, the results as JSON and steps.txt, each as soon as it is there. MODEL is smollm2 or the folder
# of a saved chat model. SECONDS, 540 if left out, is all the time there is: a step that would begin too late is left
# out, and one that takes too long is ended. Where a folder wheels/ lies beside the program's, what is missing is
# installed from it, without network. On a machine without a GPU: DEVICE=cpu SHAPE=small benchmarks/gpu.sh OUT
set -u
out=${1:?give a folder for the results} model=${2:-smollm2} end=$((SECONDS + ${3:-540}))
device=${DEVICE:-cuda} shape=${SHAPE:-llama-3-8b} python=${PYTHON:-python3}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -d wheels ]; then
    "$python" -m pip install --quiet --no-index --find-links wheels wheels/*.whl
fi

# step NAME MOST COMMAND...: run it for MOST seconds at most, if a third of that is left.
step() {
    local name=$1 most=$2 left=$((end - SECONDS)) begin=$SECONDS
    shift 2
    if ((left < most / 3)); then
        echo "$name: left out, $left s left" | tee -a "$out/steps.txt"
        return
    fi
    timeout $((left < most ? left : most)) "$@" >"$out/$name.log" 2>&1
    echo "$name: exit status $?, $((SECONDS - begin)) s" | tee -a "$out/steps.txt"
}

full=float16 half=bfloat16
if [ "$device" = cpu ]; then full=float32; fi
own=("$python" -m benchmarks.real.run --facts own --edits "${EDITS:-20}" --batch 20 --limit-unrelated 60 --ask 128
    --model "$model" --device "$device" --max-seconds 60 --cache "$out/base")
held=("$python" -m benchmarks.overhead --device "$device" --dtype "$full" --seconds 3
    --counts "${COUNTS:-1000,10000,100000,1000000}")
step machine 20 "$python" -c "import json; from benchmarks.common import machine; print(json.dumps(machine()))"
step tests 120 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/test_cuda.py \
    tests/test_memory_scans.py tests/test_comparison.py tests/test_evaluation_probing.py
step "own-$full" 150 "${own[@]}" --methods "${METHODS:-llp,elder,grace,icl,rledit,memit,finetune,lora,ultraedit,alphaedit}" --dtype "$full" \
    --out "$out/own-$full.json"
step overhead 60 "${held[@]}" --model "$model" --out "$out/overhead.json"
step large 120 "$python" -m benchmarks.large --shape "$shape" --methods "${LARGE:-llp,elder,ultraedit}" \
    --device "$device" --dtype "$full" --out "$out/large.json"
step overhead-large 60 "${held[@]}" --shape "$shape" --out "$out/overhead-large.json"
step "own-$half" 100 "${own[@]}" --methods "${METHODS:-llp,elder,grace,icl}" --dtype "$half" --out "$out/own-$half.json"
