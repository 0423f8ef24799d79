//! Addresses: which ones may be connected to on a client's behalf.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address is one that anybody on the internet may reach, so that fetching from it tells a client nothing
/// it could not have had itself (IANA's special-purpose registries, RFC 6890, and the clouds' own services).
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !is_special_v4(ip) && !is_service(IpAddr::V4(ip)),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

/// Whether an address may be connected to where private ones are allowed: those of the machine itself and of private
/// networks too, but none that belongs to the link, to groups, or to a cloud's own services.
#[must_use]
pub fn is_public_or_private(ip: IpAddr) -> bool {
    if is_service(ip) {
        return false;
    }
    match ip {
        IpAddr::V4(v4) => {
            let shared = in_v4(v4, [100, 64, 0, 0], 10);
            v4.is_private() || v4.is_loopback() || shared || is_public(ip)
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || is_public(ip),
    }
}

/// Services of clouds for their machines, at addresses that are not all link-local.
fn is_service(ip: IpAddr) -> bool {
    match ip {
        // Azure's agent, Alibaba's metadata, Oracle's.
        IpAddr::V4(ip) => {
            [[168, 63, 129, 16], [100, 100, 100, 200], [192, 0, 0, 192]].contains(&ip.octets())
                || ip.is_link_local()
        }
        // Amazon's metadata, Google's.
        IpAddr::V6(ip) => {
            let known = [
                Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
                Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
            ];
            known.contains(&ip)
        }
    }
}

fn is_special_v4(ip: Ipv4Addr) -> bool {
    const SPECIAL: [([u8; 4], u32); 16] = [
        ([0, 0, 0, 0], 8),       // this network
        ([10, 0, 0, 0], 8),      // private
        ([100, 64, 0, 0], 10),   // shared by carriers (CGNAT)
        ([127, 0, 0, 0], 8),     // loopback
        ([169, 254, 0, 0], 16),  // link-local, and metadata
        ([172, 16, 0, 0], 12),   // private
        ([192, 0, 0, 0], 24),    // protocol assignments
        ([192, 0, 2, 0], 24),    // documentation
        ([192, 88, 99, 0], 24),  // 6to4 relays
        ([192, 168, 0, 0], 16),  // private
        ([198, 18, 0, 0], 15),   // benchmarks
        ([198, 51, 100, 0], 24), // documentation
        ([203, 0, 113, 0], 24),  // documentation
        ([224, 0, 0, 0], 4),     // multicast
        ([240, 0, 0, 0], 4),     // reserved
        ([255, 255, 255, 255], 32),
    ];
    SPECIAL.iter().any(|&(net, bits)| in_v4(ip, net, bits))
}

fn in_v4(ip: Ipv4Addr, net: [u8; 4], bits: u32) -> bool {
    let mask = u32::MAX << (32 - bits);
    u32::from(ip) & mask == u32::from(Ipv4Addr::from(net)) & mask
}

/// Only global unicast is public. Outside it lie loopback, link-local, unique-local and multicast, and the forms
/// that carry an IPv4 address: mapped, compatible, and NAT64.
fn is_public_v6(ip: Ipv6Addr) -> bool {
    let within = |net: [u16; 2], bits: u32| {
        let head = |ip: [u16; 2]| (u32::from(ip[0]) << 16 | u32::from(ip[1])) & (u32::MAX << (32 - bits));
        let segments = ip.segments();
        head([segments[0], segments[1]]) == head(net)
    };
    within([0x2000, 0], 3)
        // Protocol assignments: Teredo, which carries IPv4 addresses, and ORCHID among them.
        && !within([0x2001, 0], 23)
        && !within([0x2001, 0x0db8], 32) // documentation
        && !within([0x2002, 0], 16) // 6to4, which carries IPv4 addresses
        && !within([0x3fff, 0], 20) // documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_are_told_from_all_others() {
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "93.184.216.34",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450:4001:81b::200e",
            "2001:200::1",
            "2001:4860:4860::8888",
        ];
        for text in public {
            let ip = text.parse().unwrap();
            assert!(is_public(ip) && is_public_or_private(ip), "{text}");
        }
        let private = [
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.168.255.255",
            "::1",
            "fc00::1",
            "fdff:ffff::1",
        ];
        for text in private {
            let ip = text.parse().unwrap();
            assert!(!is_public(ip) && is_public_or_private(ip), "{text}");
        }
        let never = [
            "0.0.0.0",
            "0.1.2.3",
            "169.254.0.1",
            "169.254.169.254",
            "192.0.0.1",
            "192.0.0.192",
            "192.0.2.7",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "::",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:0:4136:e378::",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::",
            "3fff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "4000::1",
            "5f00::1",
        ];
        for text in never {
            let ip = text.parse().unwrap();
            assert!(!is_public(ip) && !is_public_or_private(ip), "{text}");
        }
    }
}
