#!/usr/bin/env bash
# An image, or successive snapshots of one guest, from one network namespace to another over a link of
# 1 Gbit/s; then compares every byte, and what the link carried with what dwcp says it sent.
#
#   cargo build --release && sudo tests/netns.sh t0.mem [t1.mem ...]
#   RATE=100mbit BASELINE=t0.mem sudo -E tests/netns.sh t2.mem      # both ends have a store that holds t0
#   RATE=256kbit LIMIT=16kb sudo -E tests/netns.sh small.mem        # LIMIT: what waits at the link, as long as such a link lets it
#
# Needs root, iproute2 and cmp. Takes its namespaces and its folder down again, whatever happens.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,10p' "$0"; exit 2; }
dwcp=${DWCP:-"$(dirname "$0")/../target/release/dwcp"}
rate=${RATE:-1gbit}
folder=$(mktemp -d)
source_ns=dwcp-src-$$ sink_ns=dwcp-snk-$$
receiver=
down() {
  [ -z "$receiver" ] || kill "$receiver" 2>/dev/null || true
  ip netns del $source_ns 2>/dev/null || true
  ip netns del $sink_ns 2>/dev/null || true
  rm -rf "$folder"
}
trap down EXIT

ip netns add $source_ns
ip netns add $sink_ns
ip link add s$$ netns $source_ns type veth peer name d$$ netns $sink_ns
ip -n $source_ns addr add 10.79.1.1/24 dev s$$
ip -n $sink_ns addr add 10.79.1.2/24 dev d$$
for end in "$source_ns s$$" "$sink_ns d$$"; do
  read -r namespace device <<<"$end"
  ip -n "$namespace" link set lo up
  # Each frame for itself, as on a real link: otherwise up to 64 KiB count as one with one head. And no word of IPv6's own.
  ip -n "$namespace" link set "$device" addrgenmode none gso_max_segs 1
  ip -n "$namespace" link set "$device" up
  tc -n "$namespace" qdisc add dev "$device" root tbf rate "$rate" burst 128kb limit "${LIMIT:-1024kb}"
done

a=$("$dwcp" identity new --out "$folder/a.id" | grep -o 'sha256:[0-9a-f]*')
b=$("$dwcp" identity new --out "$folder/b.id" | grep -o 'sha256:[0-9a-f]*')
mkdir "$folder/in"
# Each end has a store of its own, of one key: by that they know that they hold the same.
from=() to=()
if [ -n "${BASELINE:-}" ]; then
  for end in a b; do
    "$dwcp" baseline add --store "$folder/$end.store" --key-file "$folder/base.key" --make-key --tenant lab --name before "$BASELINE" \
      >"$folder/$end.added"
  done
  from=(--baseline before --baseline-store "$folder/a.store" --baseline-key "$folder/base.key")
  to=(--baseline-store "$folder/b.store" --baseline-key "$folder/base.key")
fi
ip netns exec $sink_ns "$dwcp" receive --listen 10.79.1.2:7070 --identity "$folder/b.id" --trust "$a" \
  --dir "$folder/in" --once --json "${to[@]}" >"$folder/receive.json" &
receiver=$!
until grep -qs listening "$folder/receive.json"; do kill -0 $receiver; done

images=()
if [ $# -eq 1 ]; then images=("$1"); else for image; do images+=(--round "$image"); done; fi
ip netns exec $source_ns "$dwcp" send --to 10.79.1.2:7070 --identity "$folder/a.id" --trust "$b" \
  --as vm1 --state-dir "$folder/state" --json "${from[@]}" "${images[@]}" >"$folder/send.json"
grep '"summary"' "$folder/send.json"
wait $receiver
receiver=
cmp "${!#}" "$folder/in/vm1"
count() { ip netns exec $source_ns cat "/sys/class/net/s$$/statistics/$1_bytes"; }
told() { grep -o "\"link_bytes_$1\":[0-9]*" "$folder/send.json" | tail -1 | cut -d: -f2; }
for way in "sent tx" "received rx"; do
  read -r word direction <<<"$way"
  awk -v word="$word" -v told="$(told "$word")" -v carried="$(count "$direction")" 'BEGIN {
    printf "%s: the link carried %d bytes, dwcp counted %d, %.2f %% less\n", word, carried, told, (1 - told / carried) * 100
  }'
done
echo "byte-identical"
