"""Sockets and connections: UDP, TCP, ICMP."""

from __future__ import annotations

import ctypes
import socket
import struct
from contextlib import suppress

from bpfpath_nb.lab import wire
from bpfpath_nb.lab.cases.case import case
from bpfpath_nb.lab.faults import Drop
from bpfpath_nb.lab.scene import Scene

SO_ATTACH_FILTER = 26
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_TIMESTAMP = 19, 20, 21, 24
TCP_RECV_QUEUE, TCP_SEND_QUEUE = 1, 2
IP_MINTTL = 21
UDP_RCV = "__udp4_lib_rcv udp_rcv"
TCP_RCV = "tcp_v4_rcv"
TCP_STATE = "tcp_rcv_established tcp_rcv_state_process tcp_validate_incoming tcp_data_queue tcp_v4_do_rcv tcp_v4_rcv"
HURRY = struct.pack("ii", 1, 0)
"""For SO_LINGER: end the connection with a reset, which asks for no answer."""


@case("nobody listens on the UDP port", reason="NO_SOCKET", where=UDP_RCV + " udp_unicast_rcv_skb")
def udp_no_socket(scene: Scene) -> None:
    scene.udp("client", scene.server, 7301)


@case("nobody listens on the UDP port, over IPv6", reason="NO_SOCKET", where="__udp6_lib_rcv udpv6_rcv")
def udp6_no_socket(scene: Scene) -> None:
    scene.udp("client", scene.lab.address("server", 6), 7302)


@case(
    "the socket's receive buffer is full",
    reason="SOCKET_RCVBUFF",
    where="udp_queue_rcv_one_skb __udp_enqueue_schedule_skb",
)
def udp_buffer_full(scene: Scene) -> None:
    receiver = scene.listen("server", 7303)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    scene.udp("client", scene.server, 7303, bytes(500), count=8)
    receiver.settimeout(0.05)
    with suppress(TimeoutError):
        while receiver.recv(1000):
            pass


@case("the UDP checksum is wrong", reason="UDP_CSUM", where=UDP_RCV + " udp_queue_rcv_one_skb")
def udp_checksum(scene: Scene) -> None:
    scene.listen("server", 7304)
    data = wire.udp(scene.client, scene.server, 4000, 7304, b"hello", bad_checksum=True)
    scene.packet("client", wire.ipv4(scene.client, scene.server, socket.IPPROTO_UDP, data), scene.server)


@case(
    "a filter on the socket refuses the packet",
    reason="SOCKET_FILTER",
    where="udp_queue_rcv_one_skb sk_filter_trim_cap",
)
def socket_filter(scene: Scene) -> None:
    receiver = scene.listen("server", 7305)
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET: keep 0 bytes
    receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))
    scene.udp("client", scene.server, 7305)


@case("a datagram waits for a program that does not read", verdict="unfinished", lasts=True)
def udp_unread(scene: Scene) -> None:
    scene.listen("server", 7306)
    scene.udp("client", scene.server, 7306)
    scene.pause(0.3)


@case("a program reads its datagrams late", verdict="delivered")
def udp_read_late(scene: Scene) -> None:
    receiver = scene.listen("server", 7307)
    scene.udp("client", scene.server, 7307, count=3)
    scene.pause(0.3)
    for _ in range(3):
        receiver.recv(100)


@case(
    "the socket is closed with datagrams in it",
    reason="SOCKET_CLOSE QUEUE_PURGE NOT_SPECIFIED",
    where="udp_destruct_common inet_sock_destruct",
)
def udp_closed_unread(scene: Scene) -> None:
    receiver = scene.listen("server", 7308)
    scene.udp("client", scene.server, 7308)
    scene.pause(0.02)
    receiver.close()


@case(
    "the header of UDP-Lite is wrong",
    reason="UDP_CSUM PKT_TOO_SMALL IP_NOPROTO NOT_SPECIFIED",
    where="__udp4_lib_rcv ip_local_deliver_finish",
)
def udplite(scene: Scene) -> None:
    """Linux 7.2 has no UDP-Lite any more, and says that no protocol takes the packet."""
    scene.packet(
        "client", wire.ipv4(scene.client, scene.server, 136, struct.pack("!HHHH", 4000, 7309, 4, 1)), scene.server
    )


@case("the UDP header says more than there is", reason="PKT_TOO_SMALL", where=UDP_RCV)
def udp_length(scene: Scene) -> None:
    scene.packet(
        "client", wire.ipv4(scene.client, scene.server, 17, struct.pack("!HHHH", 4000, 7310, 99, 0)), scene.server
    )


@case("the ICMP checksum is wrong", reason="ICMP_CSUM", where="icmp_rcv")
def icmp_checksum(scene: Scene) -> None:
    message = bytearray(wire.icmp(8, 0, bytes(12)))
    message[2] ^= 0x55
    scene.packet("client", wire.ipv4(scene.client, scene.server, socket.IPPROTO_ICMP, bytes(message)), scene.server)


@case("nobody listens on the TCP port", reason="NO_SOCKET", where=TCP_RCV)
def tcp_no_socket(scene: Scene) -> None:
    here = scene.open_socket("client", kind=socket.SOCK_STREAM)
    with suppress(ConnectionRefusedError):
        here.connect((scene.server, 7311))


@case("the peer resets the connection", verdict="consumed")
def tcp_reset(scene: Scene) -> None:
    here, _, _ = scene.connection(7312)
    hurry(here)


def hurry(end: socket.socket) -> None:
    """Reset a connection."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HURRY)
    end.close()


@case(
    "the peer knows nothing of the connection that it is to confirm",
    reason="TCP_RESET NOT_SPECIFIED",
    where=TCP_STATE,
    also="NO_SOCKET",
)
def tcp_reset_half_open(scene: Scene) -> None:
    """The client's kernel has no socket for the answer to a segment that was written by hand, and resets."""
    scene.listen("server", 7323, kind=socket.SOCK_STREAM)
    segment(scene, wire.tcp(scene.client, scene.server, 4000, 7323))


@case("the TCP checksum is wrong", reason="TCP_CSUM", where=TCP_RCV)
def tcp_checksum(scene: Scene) -> None:
    segment(scene, wire.tcp(scene.client, scene.server, 4000, 7313, bad_checksum=True))


def segment(scene: Scene, data: bytes) -> None:
    """A TCP segment from client to server, written by hand."""
    scene.packet("client", wire.ipv4(scene.client, scene.server, socket.IPPROTO_TCP, data), scene.server)


@case(
    "the queue of connections that nobody accepts is full",
    reason="TCP_LISTEN_OVERFLOW NOT_SPECIFIED",
    where="tcp_v4_syn_recv_sock tcp_check_req tcp_v4_rcv",
    also="NETFILTER_DROP NO_SOCKET QUEUE_PURGE NOT_SPECIFIED",
)
def tcp_listen_overflow(scene: Scene) -> None:
    """Two handshakes are begun while there is place for one more connection, and then completed one after another."""
    listening = scene.open_socket("server", kind=socket.SOCK_STREAM)
    listening.bind(("", 7314))
    listening.listen(2)
    for _ in range(2):
        scene.open_socket("client", kind=socket.SOCK_STREAM).connect((scene.server, 7314))
    # The client's kernel would reset what it has no socket for.
    scene.nft("client", "chain quiet { type filter hook output priority 0; tcp flags & rst == rst drop; }")
    answers = scene.open_socket("client", kind=socket.SOCK_RAW, protocol=socket.IPPROTO_TCP)
    confirmations = []
    for sport in (4001, 4002):
        segment(scene, wire.tcp(scene.client, scene.server, sport, 7314, seq=99))
        answer = answers.recv(200)[20:]
        theirs = struct.unpack_from("!I", answer, 4)[0]
        confirmations.append(wire.tcp(scene.client, scene.server, sport, 7314, seq=100, ack=theirs + 1, flags=wire.ACK))
    for confirmation in confirmations:
        segment(scene, confirmation)
    scene.pause(0.02)


@case("nobody accepts connections any more, and their queue is full", verdict="consumed", also="QUEUE_PURGE")
def tcp_syn_unanswered(scene: Scene) -> None:
    listening = scene.open_socket("server", kind=socket.SOCK_STREAM)
    listening.bind(("", 7324))
    listening.listen(0)
    for _ in range(2):
        here = scene.open_socket("client", kind=socket.SOCK_STREAM)
        here.settimeout(1.2)
        with suppress(TimeoutError):
            here.connect((scene.server, 7324))


@case(
    "the segment lies outside of the window",
    reason="TCP_OVERWINDOW TCP_INVALID_SEQUENCE TCP_INVALID_END_SEQUENCE",
    where=TCP_STATE,
)
def tcp_out_of_window(scene: Scene) -> None:
    stray(scene, 7315, seq=0x40000000)


def stray(
    scene: Scene,
    port: int,
    *,
    seq: int = 0,
    ack: int = 0,
    flags: int = wire.ACK,
    payload: bytes = b"stray",
    age: int | None = None,
    times: int = 1,
) -> None:
    """In an established connection one more segment from the client; numbers count from where the connection is.

    With `age` it carries a timestamp so many milliseconds old.
    """
    here, there, _ = scene.connection(port)
    here.sendall(b"x")
    there.recv(1)
    there.sendall(b"y")
    here.recv(1)
    sent, received = sequence(here)
    ends = scene.client, scene.server, here.getsockname()[1], port
    seq, ack = sent + seq, received + ack
    options = b""
    if age is not None:
        now = here.getsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP) & 0xFFFFFFFF
        options = struct.pack("!BBBBII", 1, 1, 8, 10, (now - age) & 0xFFFFFFFF, 0)
    for _ in range(times):
        segment(scene, wire.tcp(*ends, seq=seq, ack=ack, flags=flags, options=options, payload=payload))
    scene.pause(0.02)
    hurry(here)
    hurry(there)


def sequence(end: socket.socket) -> tuple[int, int]:
    """The numbers that a connection is at, those of what it sends and of what it gets, through TCP_REPAIR."""
    numbers = []
    end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    for queue in (TCP_SEND_QUEUE, TCP_RECV_QUEUE):
        end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        numbers.append(end.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ))
    end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)  # off, without a probe of the window
    return numbers[0] & 0xFFFFFFFF, numbers[1] & 0xFFFFFFFF


@case("the segment brings what was there already", reason="TCP_OLD_DATA", where=TCP_STATE)
def tcp_old_data(scene: Scene) -> None:
    stray(scene, 7316, seq=-1, payload=b"x")


@case("the segment's timestamp is older than the last one", reason="TCP_RFC7323_PAWS", where=TCP_STATE)
def tcp_paws(scene: Scene) -> None:
    stray(scene, 7327, age=100000)


@case(
    "the same segment comes twice before what is missing", reason="TCP_OFOMERGE", where=TCP_STATE, also="NOT_SPECIFIED"
)
def tcp_out_of_order_twice(scene: Scene) -> None:
    stray(scene, 7328, seq=10, times=2)


@case("TCP data is lost on the way and sent again", verdict="delivered", also="NETFILTER_DROP")
def tcp_retransmission(scene: Scene) -> None:
    here, there, _ = scene.connection(7329)
    with Drop(scene.lab, "router", "tcp dport 7329", "forward"):
        here.sendall(b"lost")
        scene.pause(0.05)
    there.recv(100)
    hurry(here)
    hurry(there)


@case("TCP segments wait for others before them that are lost", verdict="delivered", also="NETFILTER_DROP")
def tcp_out_of_order(scene: Scene) -> None:
    """The sender is not told what is missing, else it would send that again at once, and no more meanwhile."""
    scene.sysctl("client", ipv4__tcp_retrans_collapse=0, ipv4__tcp_early_retrans=0)
    here, there, _ = scene.connection(7332)
    here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    here.sendall(b"in order")
    there.recv(100)
    parts = b"lost", b"waits", b"lost too", b"waits too"
    seq = sequence(here)[0]
    lost = f"tcp sequence {{ {seq}, {(seq + len(parts[0] + parts[1])) % (1 << 32)} }}"
    with Drop(scene.lab, "router", lost, "forward"), Drop(scene.lab, "router", "tcp sport 7332", "forward"):
        for data in parts:
            here.sendall(data)
        scene.pause(0.02)
    missing = sum(map(len, parts))
    while missing:
        missing -= len(there.recv(missing))
    here.sendall(b"in order again")
    there.recv(100)
    hurry(here)
    hurry(there)


@case("the segment acknowledges what was never sent", reason="TCP_ACK_UNSENT_DATA", where=TCP_STATE)
def tcp_ack_unsent(scene: Scene) -> None:
    stray(scene, 7317, ack=100000)


@case("a connection is asked for that there is already", reason="TCP_INVALID_SYN", where=TCP_STATE)
def tcp_syn_again(scene: Scene) -> None:
    stray(scene, 7318, flags=wire.SYN, payload=b"")


@case("the segment has no flag that it must have", reason="TCP_FLAGS", where=TCP_STATE)
def tcp_flags(scene: Scene) -> None:
    stray(scene, 7319, flags=0)


@case("data comes for a connection that is over", reason="TCP_CLOSE NOT_SPECIFIED", where=TCP_RCV)
def tcp_data_after_close(scene: Scene) -> None:
    here, there, _ = scene.connection(7320)
    there.close()
    here.recv(1)  # The end has come, and is not confirmed at once unless that is asked for.
    here.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    scene.pause(0.01)
    with suppress(OSError):
        here.sendall(b"too late")
    scene.pause(0.02)
    hurry(here)


@case("data comes after the program has closed", reason="TCP_ABORT_ON_DATA", where=TCP_STATE)
def tcp_abort_on_data(scene: Scene) -> None:
    here, there, _ = scene.connection(7325)
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 120)  # longer than the kernel keeps a mere remnant
    there.close()
    scene.pause(0.01)
    with suppress(OSError):
        here.sendall(b"too late")
    scene.pause(0.02)
    hurry(here)


def filled(scene: Scene, port: int, patience: float) -> tuple[socket.socket, socket.socket]:
    """A connection into which the client sends until the server's small window has been shut for so many seconds."""
    listening = scene.open_socket("server", kind=socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listening.bind(("", port))
    listening.listen(1)
    here = scene.open_socket("client", kind=socket.SOCK_STREAM)
    here.connect((scene.server, port))
    there, _ = listening.accept()
    scene.later(there.close)
    here.settimeout(patience)
    with suppress(TimeoutError):
        here.sendall(bytes(20000))
    return here, there


@case(
    "the window is shut and the peer sends all the same",
    reason="TCP_ZEROWINDOW TCP_OVERWINDOW TCP_INVALID_END_SEQUENCE",
    where=TCP_STATE,
    also="NOT_SPECIFIED",  # what nobody has read when the socket is closed
)
def tcp_zero_window(scene: Scene) -> None:
    here, there = filled(scene, 7326, 0.1)
    sent, received = sequence(there)
    ends = scene.client, scene.server, here.getsockname()[1], 7326
    segment(scene, wire.tcp(*ends, seq=received, ack=sent, flags=wire.ACK, payload=b"more"))
    scene.pause(0.02)
    hurry(here)
    hurry(there)


@case("the program reads slower than the peer sends", verdict="delivered", also="TCP_OLD_DATA TCP_OLD_SEQUENCE")
def tcp_slow_reader(scene: Scene) -> None:
    here, there = filled(scene, 7321, 0.3)
    scene.pause(0.3)
    there.settimeout(0.3)
    with suppress(TimeoutError):
        while there.recv(65536):
            pass
    hurry(here)
    hurry(there)


@case("the port speaks TCP with a time to live that is too small", reason="TCP_MINTTL", where=TCP_RCV)
def tcp_min_ttl(scene: Scene) -> None:
    listening = scene.listen("server", 7322, kind=socket.SOCK_STREAM)
    listening.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 255)
    segment(scene, wire.tcp(scene.client, scene.server, 4000, 7322))


@case("nothing is wrong", verdict="delivered")
def ordinary(scene: Scene) -> None:
    """Questions and answers over UDP, a megabyte over TCP, and an orderly end of the connection."""
    here, there = scene.open_socket("client"), scene.listen("server", 7330)
    for _ in range(3):
        here.sendto(b"question", (scene.server, 7330))
        _, peer = there.recvfrom(100)
        there.sendto(b"answer", peer)
        here.recv(100)
    scene.run("client", f"ping -c2 -i0.05 {scene.server}")
    here, there, _ = scene.connection(7331)
    for _ in range(50):
        here.sendall(bytes(20000))
        missing = 20000
        while missing:
            missing -= len(there.recv(missing))
    here.shutdown(socket.SHUT_WR)
    there.recv(1)
    there.close()
    here.recv(1)
    here.close()
