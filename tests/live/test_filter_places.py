"""What a filter is shown of an sk_buff: where its packet begins, and what of it can be read, at different places."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

from filter_packets import QUERY, ethernet, ip
from filter_programs import compile_filters, renamed, run

from bpfpath_nb.filter import Filter
from bpfpath_nb.tracer import syscall
from bpfpath_nb.tracer.toolchain import SCHED_CLS

# Where packet_from_skb() begins, for sk_buffs as they are at different places: each forges the copy of an IPv4 packet.
PLACES = {
    "as it comes": ("", "PACKET_ETHERNET", 0),
    "in ip_rcv": ("data += 14; len -= 14;", "PACKET_ETHERNET", 0),
    "in udp_rcv": ("data += 34; len -= 34;", "PACKET_ETHERNET", 0),
    "from a driver, no network header yet": ("network = 0; data += 14; len -= 14;", "PACKET_ETHERNET", 0),
    "to a driver, stale network header": ("network = 2;", "PACKET_ETHERNET", 0),
    "in ip_output, no link header yet": ("mac = 0xffff; data += 14; len -= 14;", "PACKET_RAW", 14),
    "setting out, no protocol yet": ("mac = 0xffff; protocol = 0; data += 14; len -= 14;", "PACKET_RAW", 14),
    "forwarded, protocol changed since": ("protocol = bpf_htons(0x86dd);", "PACKET_NONE", 0),
    "decapsulated, stale link header": ("mac -= 8; data += 14; len -= 14;", "PACKET_RAW", 14),
    "on a tunnel without link header": ("mac = network; data += 14; len -= 14;", "PACKET_RAW", 14),
    "link header past the network header": ("mac = network + 20; data += 14; len -= 14;", "PACKET_RAW", 14),
    "nothing set": ("mac = 0xffff; network = 0;", "PACKET_NONE", 0),
    "all of it paged": ("data_len = len;", "PACKET_NONE", 0),
    "no IP version": ("mac = 0xffff; network += 1;", "PACKET_NONE", 0),
    "nonsense lengths": ("data_len = len + 1;", "PACKET_NONE", 0),
    "nonsense data": ("data = 0;", "PACKET_NONE", 0),
}


def test_where_a_packet_begins() -> None:
    parts = []
    for number, (forge, _, _) in enumerate(PLACES.values()):
        parts.append(f"""
        int run_{number}(struct __sk_buff *context)
        {{
            struct sk_buff_view view;
            struct packet packet;
            u64 head, data;
            u32 len, data_len, whole;
            u16 mac, network, protocol;
            int result;

            sk_buff_open(&view, (u64)context);
            sk_buff_read(&view);
            head = MEMBER(&view, u64, sk_buff__head);
            data = MEMBER(&view, u64, sk_buff__data);
            len = whole = MEMBER(&view, u32, sk_buff__len);
            data_len = MEMBER(&view, u32, sk_buff__data_len);
            mac = MEMBER(&view, u16, sk_buff__mac_header);
            network = MEMBER(&view, u16, sk_buff__network_header);
            protocol = MEMBER(&view, u16, sk_buff__protocol);
            {forge}
            MEMBER(&view, u16, sk_buff__protocol) = protocol;
            MEMBER(&view, u16, sk_buff__network_header) = network;
            MEMBER(&view, u16, sk_buff__mac_header) = mac;
            MEMBER(&view, u32, sk_buff__data_len) = data_len;
            MEMBER(&view, u32, sk_buff__len) = len;
            MEMBER(&view, u64, sk_buff__data) = data;
            result = packet_from_skb(&packet, &view, 0);
            if (result)
                return packet.link == PACKET_NONE ? 0xffff : 0xfffe;
            if (packet.len != packet.caplen)
                return 0xfffd;
            if (packet.ahead != (u32)(packet.start - data))
                return 0xfffc;
            return packet.link << 8 | (whole - packet.len);
        }}
        """)
    unit = compile_filters(*parts, cast=False)  # an sk_buff cannot be forged, a copy of it can
    links = {"PACKET_ETHERNET": 1, "PACKET_RAW": 101}
    try:
        for number, (name, (_, link, start)) in enumerate(PLACES.items()):
            got = run(unit.load(f"run_{number}", SCHED_CLS), ethernet("0800", ip(17, QUERY)) + bytes(20))
            assert got == (links[link] << 8 | start if link in links else 0xFFFF), name
    finally:
        unit.close()


def test_a_payload_outside_of_the_linear_part() -> None:
    """TCP's payload lies in pages: a TC program sees it, a probe does not, and neither misses the headers."""
    request = Filter("tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420")
    headers = Filter("tcp dst port 8080 and greater 3000")
    parts = ["BPF_ARRAY(seen, u64, 4);"]
    parts += [renamed(each.c_source(), prefix) for each, prefix in ((request, "a_"), (headers, "b_"))]
    asks = [(prefix, context) for prefix in ("a_", "b_") for context in ("context", "0")]
    body = "".join(
        f"""
        if (!packet_from_skb(&packet, &view, {context}) && {prefix}filter_match(&packet)) {{
            key = {number};
            count = seen.lookup(&key);
            if (count)
                __sync_fetch_and_add(count, 1);
        }}
        """
        for number, (prefix, context) in enumerate(asks)
    )
    parts.append(f"""
    int egress(struct __sk_buff *context)
    {{
        struct sk_buff_view view;
        struct packet packet;
        u64 *count;
        int key;

        sk_buff_open(&view, (u64)context);
        sk_buff_read(&view);
        {body}
        return -1;
    }}
    """)
    unit = compile_filters(*parts)
    try:
        descriptor = unit.load("egress", SCHED_CLS)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(one_request, descriptor).result()
        counts = [int(count.value) for count in unit.map("seen").values()]
    finally:
        unit.close()
    request_tc, request_probe, headers_tc, headers_probe = counts
    assert (request_tc, request_probe) == (1, 0)
    assert headers_tc == headers_probe == 1


def one_request(descriptor: int) -> None:
    """Send one request past the program, over loopback in a namespace that this thread makes and that goes with it."""
    assert syscall.libc.unshare(syscall.CLONE_NEWNET) == 0
    with socket.socket() as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    with (
        socket.create_server(("127.0.0.1", 8080)) as server,
        socket.create_connection(("127.0.0.1", 8080)) as client,
        server.accept()[0] as peer,
    ):
        link = syscall.link_create_tcx(descriptor, 1, syscall.TCX_EGRESS)
        try:
            client.sendall(b"GET / HTTP/1.1\r\n".ljust(4000, b"a"))
            assert peer.recv(4000, socket.MSG_WAITALL)
        finally:
            os.close(link)
