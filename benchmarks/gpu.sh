#!/usr/bin/env bash
# What a GPU makes of the training step: tables and JSON in $OUT. `make bench-gpu` runs it.
#
#   OUT      folder of the results, runs/bench-gpu
#   BIN      folder of the terrafm command and its Python, .venv/bin
#   DEVICE   cuda, or cpu to try the script
#   PARTS    what to run, where a machine is lent for minutes: base large plain views memory encoder
#   BASE, LARGE  tiles per batch, 256 and 128
#   SMALLER  further options of every configuration, such as "--model.depth 2 --data.tile_size 96"
#   SET      the same for tests/tasks/step_speed.py, such as "depth=2 prototypes=256"
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/bench-gpu} bin=${BIN:-.venv/bin} device=${DEVICE:-cuda}
parts=${PARTS:-base large plain views memory encoder}
# Sizes change from step to step: without this, memory that was freed in one size does not serve another.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
declare -A batch=([base]="${BASE:-256}" [large]="${LARGE:-128}")
hardware=$([ "$device" = cuda ] && echo gpu || echo cpu)
compile=$([ "$device" = cuda ] && echo true || echo false)
mkdir -p "$out"

configuration() { # of a size, on tiles in memory
  echo "--config conf/pretrain.yaml --config conf/size/$1.yaml --config benchmarks/memory.yaml" \
    "--config conf/hardware/$hardware.yaml --data.batch_size ${batch[$1]} --model.compile $compile ${SMALLER:-}"
}
show() { # NAME COMMAND...: runs a command, and keeps what it prints; its progress goes to the terminal
  echo "== $1: ${*:2}"
  "${@:2}" | tee "$out/$1.txt"
}

# Options are words without blanks.
# shellcheck disable=SC2046,SC2086
for part in $parts; do
  case $part in
    base | large)
      show "$part" "$bin/terrafm" profile $(configuration "$part") --steps "${STEPS:-30}" --warmup "${WARMUP:-10}" \
        --json "$out/$part.json"
      show "scaling-$part" "$bin/terrafm" profile scaling "$out/$part.json"
      ;;
    plain)
      show plain "$bin/python" tests/tasks/step_speed.py --model terrafm_base --device "$device" --precision bf16 \
        --batch "${PLAIN_BATCH:-64}" --rounds "${ROUNDS:-3}" --steps 5 --json "$out/plain.json" \
        --set compile=$compile ${SET:-}
      ;;
    views)
      show views "$bin/python" -m benchmarks.views --batch "${BASE:-256}" --rounds "${ROUNDS:-5}" --device "$device" \
        --json "$out/views.json"
      ;;
    memory) show memory "$bin/terrafm" profile memory ;;
    encoder)
      show encoder "$bin/python" -m benchmarks.encoder --batch "${PLAIN_BATCH:-64}" --device "$device" --rounds "${ROUNDS:-5}"
      ;;
    *)
      echo "PARTS names $part, which is none of: base large plain views memory encoder" >&2
      exit 2
      ;;
  esac
done
echo "Results in $out"
