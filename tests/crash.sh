#!/usr/bin/env bash
# Kills either end with -9 at random moments of a transfer, starts it again, and compares every byte at the end.
#
#   cargo build --release && tests/crash.sh [KILLS] [SEED]        200 kills by default; needs cmp
#
# Each image is cut three times, then sent until it is there. Ends with 1 at the first image that is not.
set -euo pipefail
kills=${1:-200} RANDOM=${2:-1}
dwcp=${DWCP:-"$(dirname "$0")/../target/release/dwcp"}
bytes=$((64 << 20)) rate=${RATE:-150MB}
folder=$(mktemp -d)
receiver='' sender=''
down() {
  for process in $receiver $sender; do kill -9 "$process" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap down EXIT

a=$("$dwcp" identity new --out "$folder/a.id" | grep -o 'sha256:[0-9a-f]*')
b=$("$dwcp" identity new --out "$folder/b.id" | grep -o 'sha256:[0-9a-f]*')
mkdir "$folder/in"
head -c $bytes /dev/urandom >"$folder/image"

address=127.0.0.1:0
receive() {
  : >"$folder/receive.json"
  "$dwcp" receive --listen "$address" --identity "$folder/b.id" --trust "$a" --dir "$folder/in" --replace --json \
    >>"$folder/receive.json" 2>>"$folder/receive.err" &
  receiver=$!
  until grep -q listening "$folder/receive.json"; do
    kill -0 $receiver || { echo "GONE: the receiver did not start after $done kills"; tail -n 5 "$folder/receive.err"; exit 1; }
  done
  address=$(grep -o '"address":"[^"]*"' "$folder/receive.json" | head -1 | cut -d'"' -f4)
}
send() {
  "$dwcp" send --to "$address" --identity "$folder/a.id" --trust "$b" --as vm1 --state-dir "$folder/state" \
    --bandwidth "$rate" --json "$folder/image" >"$folder/send.json" 2>>"$folder/send.err" &
  sender=$!
}

done=0 images=0 doubts=0
receive
while [ $done -lt "$kills" ]; do
  rm -f "$folder/in/vm1"
  send
  for _ in 1 2 3; do
    # A moment within the transfer, or shortly after it.
    read -rt "0.$(printf %03d $((RANDOM % 450)))" <> <(:) || true
    done=$((done + 1))
    if [ $((RANDOM % 2)) = 0 ]; then
      kill -9 $receiver || { echo "GONE: the receiver ended by itself after $done kills"; tail -n 5 "$folder/receive.err"; exit 1; }
      wait $receiver 2>/dev/null || true
      receive
    else
      kill -9 $sender 2>/dev/null || true
      wait $sender 2>/dev/null || true
      send
    fi
  done
  code=0
  wait $sender || code=$?
  # A name may be held for a moment, or the transfer be in doubt, because its sender was killed while it handed over. No
  # other help is given: what was promised to a killed sender, its next one takes back (O-6).
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ $code != 0 ] || break
    for transfer in $("$dwcp" resolve --state-dir "$folder/state" --json | grep -o '"transfer":"[0-9a-f]*"' | cut -d'"' -f4); do
      doubts=$((doubts + 1))
      "$dwcp" resolve "$transfer" --state-dir "$folder/state" --to "$address" --identity "$folder/a.id" --trust "$b" \
        >/dev/null 2>>"$folder/send.err" || true
    done
    send
    code=0
    wait $sender || code=$?
  done
  [ $code = 0 ] || { echo "LOST: the sender ends with $code after $done kills"; tail -n 5 "$folder/send.err"; tail -n 5 "$folder/receive.err"; exit 1; }
  cmp "$folder/image" "$folder/in/vm1" || { echo "CORRUPT after $done kills"; exit 1; }
  images=$((images + 1))
  [ $((images % 50)) != 0 ] || echo "$done kills, $images images so far" >&2
done
left=$(find "$folder/in" -name '.dwcp-*.part' | wc -l)
echo "$done kills, $images images: 0 lost, 0 corrupt; $doubts doubts ended by asking; $left staging files left"
