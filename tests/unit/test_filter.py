"""Filters without a kernel: what is accepted, what is refused and how, and the verdict on stored packets."""

from __future__ import annotations

import ctypes
import pickle
import re
import struct
import threading
import time

import pytest

from bpfpath_nb.errors import FilterError, RequirementError
from bpfpath_nb.filter import Filter, cbpf, common_loads, expression, libpcap, mark, translate
from bpfpath_nb.filter.cbpf import Instruction

ADDRESSES = bytes([10, 0, 0, 1, 10, 0, 0, 2])
QUERY = struct.pack("!HHHH", 40000, 53, 8, 0)
IP = struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0, 64, 17, 0) + ADDRESSES + QUERY
FRAME = bytes.fromhex("0200000000020200000000010800") + IP
TAGGED = FRAME[:12] + bytes.fromhex("81000005") + FRAME[12:]
ARP = bytes.fromhex("ffffffffffff02000000000108060001080006040001") + bytes(20)

RETURN = Instruction(cbpf.RET, 0, 0, 1)


def refusal(text: str) -> str:
    with pytest.raises(FilterError) as error:
        Filter(text)
    return str(error.value)


class TestMatches:
    @pytest.mark.parametrize(
        ("text", "packet", "expected"),
        [
            ("udp port 53", FRAME, True),
            ("udp port 54", FRAME, False),
            ("host 10.0.0.1 and not tcp", FRAME, True),
            ("arp", ARP, True),
            ("arp", FRAME, False),
            ("vlan 5 and udp port 53", TAGGED, True),
            ("udp port 53", TAGGED, False),
            ("greater 43", FRAME, False),
            ("udp port 53", FRAME[:36], False),
            ("ip[8] = 64", FRAME[:22], False),
            ("ip[8] = 64", FRAME[:23], True),
            ("", b"", True),
            ("   ", b"", True),
            ("ip", b"", False),
        ],
    )
    def test_ethernet(self, text: str, packet: bytes, expected: bool) -> None:
        assert Filter(text).matches(packet) is expected

    def test_bare_ip(self) -> None:
        assert Filter("udp port 53").matches(IP, link="raw")
        assert not Filter("udp port 53").matches(FRAME, link="raw")

    @pytest.mark.parametrize("text", ["arp", "ether host 02:00:00:00:00:01", "vlan"])
    def test_what_bare_ip_cannot_have_never_matches_there(self, text: str) -> None:
        assert not Filter(text).matches(IP, link="raw")
        assert (
            "static __always_inline int filter_raw(const struct packet *p)\n{\n\treturn 0;\n}"
            in Filter(text).c_source()
        )

    def test_the_length_of_a_truncated_packet(self) -> None:
        assert not Filter("greater 1000").matches(FRAME)
        assert Filter("greater 1000").matches(FRAME, length=1500)
        assert Filter("len = 42").matches(FRAME, length=3)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("udp port 53", True),
            ("vlan 5 and udp port 53", True),
            ("vlan 6", False),
            ("vlan and len = 46", True),
            ("len = 42", True),
            ("not vlan", False),
        ],
    )
    def test_a_tag_beside_the_frame_counts_for_vlan_only(self, text: str, expected: bool) -> None:
        assert Filter(text).matches(FRAME, vlan=(0x8100, 5)) is expected

    @pytest.mark.parametrize("text", ["inbound", "outbound and udp", "ifindex 3", "ether[0xfffff004] = 1"])
    def test_what_bytes_do_not_tell(self, text: str) -> None:
        with pytest.raises(FilterError, match="only the running kernel knows"):
            Filter(text).matches(FRAME)

    def test_wrong_link(self) -> None:
        with pytest.raises(ValueError, match="'ethernet' or 'raw'"):
            Filter("ip").matches(FRAME, link="token ring")  # type: ignore[arg-type]

    def test_other_kinds_of_bytes(self) -> None:
        assert Filter("udp").matches(bytearray(FRAME))
        assert Filter("udp").matches(memoryview(FRAME))


class TestMarks:
    """The mark stands under what is wrong, or nowhere."""

    @pytest.mark.parametrize(
        ("text", "marked"),
        [
            ("udp and and tcp", "        ^^^"),
            ("udp foo", "    ^^^"),
            ("foo", "^^^"),
            ("udp )", "    ^"),
            ("host $$", "     ^^"),
            ("tcp[13 = 1", "       ^"),
            ("tcp port 80 or tcp prot 90", "                   ^^^^"),
            ("1.2.3.4.5", "^^^^^^^^^"),
            ("tcp port 80 or\n tcp\tprot 90", "                    ^^^^"),
            ("udp \u2603 and", "    ^"),
            ("udp or \\foo", "       ^^^^"),
            # it ends too early
            ("udp and", "       ^"),
            ("(udp", "    ^"),
            ("udp or host", "           ^"),
            # named by libpcap
            ("udp or port nosuchservice", "            ^^^^^^^^^^^^^"),
            ("port 70000", "     ^^^^^"),
            ("net 10.0.0.1/8 or ip", "    ^^^^^^^^^^"),
            ("ip[99999999999] = 1", "   ^^^^^^^^^^^"),
        ],
    )
    def test_marked(self, text: str, marked: str) -> None:
        lines = refusal(text).splitlines()
        assert lines[2] == "    " + marked
        assert len(lines[1]) == 4 + len(text)

    @pytest.mark.parametrize(
        "text",
        [
            "ip and arp",
            "port 0x11170 or port 65535",
            "ip[31] << 33 = 1",
            "port nosuchservice and tcp port nosuchservice",
            "udp and and 7::5::3::1::",
        ],
    )
    def test_not_marked_when_unsure(self, text: str) -> None:
        assert "^" not in refusal(text).replace(text, "")

    def test_long_expressions_are_shown_around_the_mark(self) -> None:
        text = "port 7 or " * 40 + "udp udp or " + "port 8 or " * 40 + "tcp"
        _, shown, marks, *_ = refusal(text).splitlines()
        assert len(shown) < 120
        assert shown[marks.index("^") : marks.rindex("^") + 1] == "udp"
        assert shown.startswith("    ... ")
        assert shown.endswith(" ...")

    def test_libpcap_says_it(self) -> None:
        assert "libpcap does not accept this filter: can't parse filter expression: syntax error" in refusal("udp foo")
        assert "expression rejects all packets" in refusal("ip and arp")

    def test_tokens(self) -> None:
        text = "tcp[12:2]>=5 && host\\foo"
        assert [text[word.start : word.end] for word in mark.tokens(text)] == [
            *("tcp", "[", "12:2", "]", ">=", "5", "&&", "host", "\\foo")
        ]


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("protochain 6", "jumps backwards.*protochain"),
            ("geneve and inbound", "header of variable length"),
            ("ether[0xfffff038] = 1", "SKF_AD_RANDOM"),
            ("ether[0xfffff034] = 1", "SKF_AD_PAY_OFFSET"),
            ("ether[0xfffff00c] = 1", "SKF_AD_NLATTR "),
            ("ether[0xffffffff] = 1", "no meaning"),
            ("ether[0xfff00010] = 1", "SKF_NET_OFF"),
            ("ether[0xffe00010] = 1", "SKF_LL_OFF"),
            ("udp\0", "NUL"),
            ("udp \ud800", "not valid text"),
            ("(" * 40000, "40,000 bytes"),
            (" or ".join(f"port {n}" for n in range(400)), "before libpcap's optimizer"),
            ("+".join(f"ip[{n}:4]" for n in range(900)) + "=1", "too long for the kernel"),
            ("+(".join(f"ip[{n}:4]" for n in range(15)) + ")" * 14 + " = 1", "nested too deeply"),
            (" or ".join(f"ip6[{n}:4] = ip6[ip6[{n}]:2]" for n in range(130)), "instructions in the kernel"),
        ],
    )
    def test_says_why(self, text: str, why: str) -> None:
        assert re.search(why, refusal(text))

    def test_a_long_filter_is_refused_quickly(self) -> None:
        start = time.process_time()
        assert "terms" in refusal(" or ".join(f"port {n}" for n in range(2000)))
        assert "optimizer" in refusal("port 1" + "||2" * 599)
        assert time.process_time() - start < 20

    @pytest.mark.parametrize("what", [None, b"udp", 53])
    def test_not_text(self, what: object) -> None:
        with pytest.raises(FilterError, match="text"):
            Filter(what)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("program", "why"),
        [
            ([], "empty program"),
            ([Instruction(cbpf.LD | cbpf.IMM, 0, 0, 1)], "past its own end"),
            ([Instruction(cbpf.JMP | cbpf.JEQ, 1, 0, 0), RETURN], "out of the program"),
            ([Instruction(cbpf.JMP | cbpf.JA, 0, 0, 7), RETURN], "out of the program"),
            ([Instruction(cbpf.JMP | cbpf.JA, 0, 0, 0xFFFFFFFE), RETURN], "backwards"),
            ([Instruction(cbpf.ST, 0, 0, 16), RETURN], "word 16"),
            ([Instruction(cbpf.LDX | cbpf.MEM, 0, 0, 99), RETURN], "word 99"),
            ([Instruction(cbpf.ALU | cbpf.DIV, 0, 0, 0), RETURN], "constant zero"),
            ([Instruction(cbpf.ALU | cbpf.MOD, 0, 0, 0), RETURN], "constant zero"),
            ([Instruction(cbpf.ALU | cbpf.LSH, 0, 0, 32), RETURN], "32 bits"),
            ([Instruction(cbpf.ALU | cbpf.NEG | cbpf.X, 0, 0, 0), RETURN], "0x8c is not known"),
            ([Instruction(0xFFFF, 0, 0, 0), RETURN], "0xffff is not known"),
            ([RETURN] * 5000, "5,000 instructions"),
        ],
    )
    def test_programs(self, program: list[Instruction], why: str) -> None:
        with pytest.raises(FilterError, match=why):
            cbpf.check(program)

    def test_no_libpcap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(libpcap, "_SONAMES", ("libpcap-that-is-not-there.so",))
        libpcap._library.cache_clear()
        try:
            with pytest.raises(RequirementError, match="apt install libpcap"):
                Filter("udp")
        finally:
            libpcap._library.cache_clear()


class TestC:
    def test_holds_nothing_of_the_users_text(self) -> None:
        source = Filter(
            "udp port 53 or port domain or ether proto \\arp or (ip[0] = 0x41 and ip[1] = 0x2f2a)"
        ).c_source()
        words = set(re.findall(r"[A-Za-z_]\w*", source))
        known = "static __always_inline int filter_ethernet filter_raw filter_match const struct packet p u32 u64 s64"
        known += " A X v w union packet_word packet_load if goto return link PACKET_ETHERNET PACKET_RAW u"
        assert {word for word in words if not re.fullmatch(r"L\d+|V\d+_\d(_X\d+)?", word)} <= set(known.split())

    def test_only_vlan_is_shown_the_tag(self) -> None:
        assert "_tagged" not in Filter("udp port 53").c_source()
        assert not Filter("udp port 53").wants_vlan
        plain, raw = Filter("vlan 5 or len > 5").c_source().split("filter_raw(", 1)
        assert "packet_load_tagged(p, 12u, 2, &w)" in plain
        assert "packet_len_tagged" in plain
        assert "_tagged" not in raw

    @pytest.mark.parametrize(("text", "wants"), [("vlan and udp", True), ("not(vlan)", True), ("host 1.2.3.4", False)])
    def test_wants_vlan(self, text: str, wants: bool) -> None:
        assert Filter(text).wants_vlan is wants

    def test_everything(self) -> None:
        assert Filter("").matches_everything
        assert "filter_match(const struct packet *p)\n{\n\treturn 1;\n}" in Filter("").c_source()
        assert not Filter("ip").matches_everything

    def test_labels_are_used_and_defined_once(self) -> None:
        for text in ("udp port 53", "ip[2:2] / ip[8] > 5 or tcp[13] & 2 != 0", "vlan 5 and port 53"):
            for function in Filter(text).c_source().split("static "):
                labels = re.findall(r"^(L\d+):", function, re.M)
                assert len(labels) == len(set(labels))
                assert set(labels) == set(re.findall(r"goto (L\d+);", function))

    @pytest.mark.parametrize(
        ("instruction", "statement"),
        [
            (Instruction(cbpf.LD | cbpf.IND | cbpf.H, 0, 0, 14), "packet_load(p, (u64)X + 14u, 2, &w)"),
            (Instruction(cbpf.LDX | cbpf.MSH | cbpf.B, 0, 0, 14), "X = (v & 15) << 2;"),
            (Instruction(cbpf.LD | cbpf.MEM, 0, 0, 15), "A = M15;"),
            (Instruction(cbpf.STX, 0, 0, 3), "M3 = X;"),
            (Instruction(cbpf.ALU | cbpf.DIV | cbpf.X, 0, 0, 0), "if (!X)\n\t\treturn 0;\n\tA = A / X;"),
            (Instruction(cbpf.ALU | cbpf.RSH | cbpf.X, 0, 0, 0), "A = X < 32 ? A >> X : 0;"),
            (Instruction(cbpf.ALU | cbpf.NEG, 0, 0, 0), "A = 0u - A;"),
            (Instruction(cbpf.MISC | cbpf.TAX, 0, 0, 0), "X = A;"),
            (Instruction(cbpf.RET | cbpf.A, 0, 0, 0), "return A != 0;"),
            (Instruction(cbpf.LD | cbpf.ABS | cbpf.W, 0, 0, cbpf.AD_OFF + 4), "packet_pkttype(p)"),
            (Instruction(cbpf.LDX | cbpf.LEN, 0, 0, 0), "X = packet_len(p);"),
        ],
    )
    def test_instructions(self, instruction: Instruction, statement: str) -> None:
        program = (instruction, Instruction(cbpf.RET | cbpf.A, 0, 0, 0))
        cbpf.check(program)
        assert statement in translate.function("f", program, False)


class TestCommonLoads:
    def test_a_long_chain_loads_once(self) -> None:
        source = Filter(" or ".join(f"net 2001:db8:{n:x}::/48" for n in range(0, 60, 3))).c_source()
        # The ethertype, and two words of each address; the same without the ethertype for bare IP.
        assert source.count("packet_load(") < 16

    def test_loads_by_x_only_where_x_is_one_thing(self) -> None:
        by_x = Instruction(cbpf.LD | cbpf.IND | cbpf.H, 0, 0, 16)
        header = Instruction(cbpf.LDX | cbpf.MSH | cbpf.B, 0, 0, 14)
        many = common_loads.MANY
        assert len(common_loads.common((header, *[by_x] * many, RETURN))) == many
        assert common_loads.common((*[by_x] * many, header, RETURN)) == {}
        assert common_loads.common((header, *[by_x] * many, Instruction(cbpf.MISC | cbpf.TAX, 0, 0, 0), RETURN)) == {}
        skipped = Instruction(cbpf.JMP | cbpf.JEQ, 1, 0, 7)
        assert common_loads.common((skipped, header, *[by_x] * many, RETURN)) == {}

    def test_cost_knows_what_is_loaded_once(self) -> None:
        load = Instruction(cbpf.LD | cbpf.ABS | cbpf.W, 0, 0, 26)
        assert translate.cost((*[load] * 40, RETURN), False) < translate.cost(
            (*[load._replace(k=n) for n in range(40)], RETURN), False
        )


class TestObject:
    def test_plain_object(self) -> None:
        one = Filter("udp port 53")
        assert one == Filter("udp port 53") != Filter("udp")
        assert len({one, Filter("udp port 53")}) == 1
        assert repr(one) == "Filter('udp port 53')"
        assert pickle.loads(pickle.dumps(one)).matches(FRAME)

    def test_metadata(self) -> None:
        assert Filter("inbound and ifindex 3").metadata == ("pkttype", "ifindex")
        assert Filter("udp").metadata == ()

    def test_programs_are_freed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = libpcap._library()
        freed = []

        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(library, name)

            def pcap_freecode(self, program: object) -> None:
                freed.append(program)
                library.pcap_freecode(program)

        monkeypatch.setattr(libpcap, "_library", Counting)
        Filter("udp")
        assert len(freed) == 2

    def test_threads(self) -> None:
        wrong: list[BaseException | int] = []

        def work(port: int) -> None:
            try:
                wrong.extend(n for n in range(30) if Filter(f"udp port {port + n}").matches(FRAME) != (port + n == 53))
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(port,)) for port in (40, 50, 60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_structures_are_as_libpcap_has_them(self) -> None:
        assert ctypes.sizeof(libpcap._Instruction) == 8
        assert ctypes.sizeof(libpcap._PacketHeader) == 2 * ctypes.sizeof(ctypes.c_long) + 8
        assert expression.MAX_COST < 32767
