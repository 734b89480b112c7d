# `just` lists these; each is one cargo command that can be typed as well.

set shell := ["bash", "-euo", "pipefail", "-c"]

_default:
    @just --list

# Everything that the gate checks, in its order
check:
    bash .ci/run

# All tests
test:
    cargo test --workspace

# Format and lints, as the gate sees them
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# So many seeds of the simulator, 0.. ; a failing seed is the bug report
sim SEEDS="10000":
    cargo run --release -p dwcp-sim --bin dwcp-sim -- --seeds 0..{{SEEDS}}

# The hand-over, exhaustively: every order of what may happen to a few pages (minutes, 4 GiB)
model:
    cargo test --release -p dwcp-sim --test handover_model -- --include-ignored --nocapture --test-threads 1

# So many different states in which a power cut or a kill may leave a disk
crash-states COUNT="100000":
    cargo run --release -p dwcp-sim --bin dwcp-sim -- --crash-states {{COUNT}}

# Crash states of a disk with a store of baselines.
store-crash-states COUNT="100000":
    cargo run --release -p dwcp-sim --bin dwcp-sim -- --store-crash-states {{COUNT}}

# So many damaged frames and extents, and as many bit flips inside the channel: all refused, nothing applied
malformed INPUTS="1000000" SEED="1":
    cargo run --release -p dwcp-sim --bin dwcp-sim -- --malformed {{INPUTS}} {{SEED}}

# Each attack of a trusted peer over TLS with so many seeds
attacks SEEDS="50":
    DWCP_ATTACK_SEEDS=0..{{SEEDS}} cargo test --test attacks

# Thousands of connections that say nothing, and an honest peer that wants in (ulimit -n 20000)
siege *ARGS:
    cargo bench --bench siege -- {{ARGS}}

# One target of fuzz/ for so many seconds (nightly, cargo install cargo-fuzz)
# (session_ops reaches safe Rust only: without the address sanitizer, SANITIZER=none, it runs nine times as fast;
# a target whose input is a text has its words in fuzz/dictionaries)
fuzz TARGET TIME="60" SANITIZER="address":
    cargo +nightly fuzz run -s {{SANITIZER}} {{TARGET}} -- -max_total_time={{TIME}} -max_len=65536 \
        $(ls fuzz/dictionaries/{{TARGET}}.dict 2>/dev/null | sed 's/^/-dict=/')

# Reduces a corpus to the inputs that reach something of their own, before it is committed
fuzz-shrink TARGET:
    cargo +nightly fuzz cmin {{TARGET}}

# Applies each change of docs/mutants.md in turn; each must make its test fail
mutants:
    cargo run --release -p dwcp-sim --bin mutants

# Changes that a tool makes to wire, credit, switch-over and hand-over: how many the unit tests notice (cargo install cargo-mutants; one in PART)
mutation-score PART="12":
    cargo mutants --shard 0/{{PART}} --sharding round-robin --timeout 180 --no-shuffle -p dwcp-core --test-package dwcp-core \
        --cargo-arg=--no-default-features -f 'dwcp-core/src/wire/**' -f dwcp-core/src/session/lanes.rs -f dwcp-core/src/session/handover.rs \
        -f dwcp-core/src/session/source/leave.rs -f dwcp-core/src/session/source/switch_over.rs -f dwcp-core/src/session/sink.rs \
        -f 'dwcp-core/src/session/sink/**' -- --lib --test vectors

# The same of the journal of an image
mutation-score-journal SHARD="0/10":
    cargo mutants --shard {{SHARD}} --sharding round-robin --timeout 180 --no-shuffle -p dwcp-core --test-package dwcp-core \
        --cargo-arg=--lib -f 'dwcp-core/src/guest/image/journal/**' -- guest::image

# Micro benchmarks: wire, hde, session
bench:
    cargo bench --bench wire --bench hde --bench session

# What the codec saves on real guest memory and how fast, beside its peers: just bench-codec --pages DIR
bench-codec *ARGS:
    cargo bench --bench codec -- {{ARGS}}

# Whole transfers over loopback beside the bare rustls loop
bench-transfer *ARGS:
    cargo bench --bench transfer -- {{ARGS}}

# Images to a disk: durable throughput beside dd, or with --resume what a kill costs; see its --help
bench-disk *ARGS:
    cargo bench --bench disk -- {{ARGS}}

# The main job in one command
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# An image, or snapshots, through two network namespaces at 1 Gbit/s, compared byte by byte (root)
netns +IMAGES:
    cargo build --release
    tests/netns.sh {{IMAGES}}

# Kills a process at each named point of a transfer, in a debug build; DWCP_CELL names one point
failpoints:
    cargo test --test failpoints -- --nocapture

# Lines of the libraries that their tests come by (cargo install cargo-tarpaulin; no llvm-tools needed); tests that kill processes leave
# counts that cannot be read
coverage:
    cargo tarpaulin --engine llvm --skip-clean --workspace --lib \
        --test attacks --test corpus --test cuts --test handover --test hostile --test loopback --test malformed --test sim \
        --test flag_vectors --test vectors --test crash_states --test planted --test seeds --test openings --test legacy_peer \
        --test compatibility --exclude-files 'fuzz/*' 'benches/*' 'tests/*' 'src/*' --timeout 1800 --no-fail-fast

# Transfers without end, and whether memory, tasks or descriptors grow (minutes)
soak MINUTES="30":
    cargo bench --bench soak -- --minutes {{MINUTES}}

# A thousand transfers and a thousand idle sessions between two nodes (ulimit -n 20000)
many *ARGS:
    cargo bench --bench many -- {{ARGS}}

# Kills either end of a transfer with -9 so many times, and compares every byte
crash KILLS="200" SEED="1":
    cargo build --release
    tests/crash.sh {{KILLS}} {{SEED}}
