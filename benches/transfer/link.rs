//! A link: two network namespaces, a veth pair, tbf.

use std::process::Command;

pub const SOURCE: &str = "dwcpA";
pub const SINK: &str = "dwcpB";
/// The sink's, in its own namespace.
pub const ADDRESS: &str = "10.79.0.2";

/// The two namespaces, taken down when dropped.
pub struct Link;

impl Link {
    /// Of so much each way, in tbf's words; `None`: as fast as it goes.
    pub fn up(rate: Option<&str>) -> Option<Self> {
        let _ = Self::down();
        let commands = [
            format!("ip netns add {SOURCE}"),
            format!("ip netns add {SINK}"),
            format!("ip link add vA netns {SOURCE} type veth peer name vB netns {SINK}"),
            format!("ip -n {SOURCE} addr add 10.79.0.1/24 dev vA"),
            format!("ip -n {SINK} addr add {ADDRESS}/24 dev vB"),
            format!("ip -n {SOURCE} link set vA up"),
            format!("ip -n {SINK} link set vB up"),
            format!("ip -n {SOURCE} link set lo up"),
            format!("ip -n {SINK} link set lo up"),
        ];
        let shaped = rate.into_iter().flat_map(|rate| {
            [(SOURCE, "vA"), (SINK, "vB")].map(|(namespace, device)| {
                format!("tc -n {namespace} qdisc add dev {device} root tbf rate {rate} burst 128kb limit 1024kb")
            })
        });
        for command in commands.into_iter().chain(shaped) {
            if !run(&command) {
                eprintln!("skipped: `{command}` failed; a link needs root, iproute2 and network namespaces");
                let _ = Self::down();
                return None;
            }
        }
        Some(Self)
    }

    fn down() -> bool {
        [SOURCE, SINK].iter().all(|namespace| run(&format!("ip netns del {namespace}")))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Self::down();
    }
}

fn run(command: &str) -> bool {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output();
    output.is_ok_and(|output| output.status.success())
}
