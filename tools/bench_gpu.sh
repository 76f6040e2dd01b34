#!/usr/bin/env bash
# What a GPU makes of the training step: tables and JSON in $OUT. `make bench-gpu` runs it.
#
#   OUT      folder of the results, runs/bench-gpu
#   BIN      folder of the terrafm command and its Python, .venv/bin
#   DEVICE   cuda, or cpu to try the script
#   BASE, LARGE  tiles per batch, 256 and 128
#   SMALLER  further options of every configuration, such as "--model.depth 2 --data.tile_size 96"
#   SET      the same for tests/tasks/step_speed.py, such as "depth=2 prototypes=256"
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/bench-gpu} bin=${BIN:-.venv/bin} device=${DEVICE:-cuda}
declare -A batch=([base]="${BASE:-256}" [large]="${LARGE:-128}")
hardware=$([ "$device" = cuda ] && echo gpu || echo cpu)
compile=$([ "$device" = cuda ] && echo true || echo false)
mkdir -p "$out"

configuration() { # of a size, on tiles in memory
  echo "--config conf/pretrain.yaml --config conf/size/$1.yaml --config conf/data/memory.yaml" \
    "--config conf/hardware/$hardware.yaml --data.batch_size ${batch[$1]} --model.compile $compile ${SMALLER:-}"
}
show() { # NAME COMMAND...: runs a command, and keeps what it prints; its progress goes to the terminal
  echo "== $1: ${*:2}"
  "${@:2}" | tee "$out/$1.txt"
}

for size in base large; do
  # shellcheck disable=SC2046
  show "$size" "$bin/terrafm" profile $(configuration $size) --steps "${STEPS:-30}" --warmup "${WARMUP:-10}" \
    --json "$out/$size.json" --figure "$out/$size.png"
  show "scaling-$size" "$bin/terrafm" profile scaling "$out/$size.json"
done
# shellcheck disable=SC2046
show gains "$bin/terrafm" profile gains $(configuration base) --steps "${STEPS:-10}" --warmup "${WARMUP:-5}" \
  --rounds "${ROUNDS:-3}" --json "$out/gains.json"
# shellcheck disable=SC2086
show plain "$bin/python" tests/tasks/step_speed.py --model terrafm_base --device "$device" --precision bf16 \
  --batch "${PLAIN_BATCH:-64}" --rounds "${ROUNDS:-3}" --steps 5 --json "$out/plain.json" --set compile=$compile ${SET:-}
show views "$bin/terrafm" profile views --batch "${BASE:-256}" --rounds "${ROUNDS:-5}" --device "$device" \
  --json "$out/views.json"
show memory "$bin/terrafm" profile memory
show encoder "$bin/terrafm" profile encoder --batch "${PLAIN_BATCH:-64}" --device "$device" --rounds "${ROUNDS:-5}"
echo "Results in $out"
