/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading the kernel's memory.
 *
 * A structure is read at byte offsets that come from the running kernel's BTF. There are two ways to do so:
 *
 * - bpf_probe_read_kernel(), on every kernel: a call that copies, and says where it could not.
 * - bpf_rdonly_cast() (Linux 6.2): the verifier takes an address for a pointer to a structure, and what is read through
 *   it becomes one instruction, which the kernel lets fail with 0. That is nearly free, where a call costs more than
 *   most of what a probe does, so it is taken where the kernel has it (HAVE_CAST). Nothing of it is run: the verifier
 *   puts a move in its place.
 *
 * The verifier checks that what is read lies within one member of the structure, and takes a pointer that is read for a
 * pointer; here addresses are hashed, compared and kept. So one structure stands for all: pt_regs, which is an array of
 * words in all but its name. Any part of a word may be read, and is a number.
 *
 * A failed read gives 0, in both ways. That is no pointer, no length and no IP version, so that what depends on it ends
 * there.
 */

#ifdef HAVE_CAST
/* The tracer marks this as the call of a kernel function (BPF_PSEUDO_KFUNC_CALL), which bcc cannot (toolchain.py). */
static const u8 *(*rdonly_cast)(u64 address, u32 type_id) = (void *)bpf_rdonly_cast__TYPE_ID;

#define CAST(address) rdonly_cast(address, pt_regs__TYPE_ID)

/* An instruction of its own: clang would make one of a load through a cast and another through a map's pointer, where
 * two branches meet, and the verifier wants to know of each which it is. */
#define LOAD_THROUGH(type, pointer, offset)                                                                  \
	({                                                                                                   \
		u64 value_;                                                                                  \
		if (sizeof(type) == 8)                                                                       \
			asm("%0 = *(u64 *)(%1 + %2)" : "=r"(value_) : "r"(pointer), "i"(offset));            \
		else if (sizeof(type) == 4)                                                                  \
			asm("%0 = *(u32 *)(%1 + %2)" : "=r"(value_) : "r"(pointer), "i"(offset));            \
		else if (sizeof(type) == 2)                                                                  \
			asm("%0 = *(u16 *)(%1 + %2)" : "=r"(value_) : "r"(pointer), "i"(offset));            \
		else                                                                                         \
			asm("%0 = *(u8 *)(%1 + %2)" : "=r"(value_) : "r"(pointer), "i"(offset));             \
		(type) value_;                                                                               \
	})
#define LOAD(type, address) LOAD_THROUGH(type, CAST(address), 0)
#else
#define LOAD(type, address)                                                                                  \
	({                                                                                                   \
		type value_ = 0;                                                                             \
		bpf_probe_read_kernel(&value_, sizeof(value_), (void *)(address));                           \
		value_;                                                                                      \
	})
#endif

/* Through a pointer that may be 0. */
static __always_inline u64 read_pointer(u64 from, u32 offset)
{
	return from ? LOAD(u64, from + offset) : 0;
}

static __always_inline u32 read_u32(u64 from, u32 offset)
{
	return from ? LOAD(u32, from + offset) : 0;
}

/* Some bytes that are looked at in several places: read at once where a call does it. WINDOW() reads one of their
 * numbers, at a constant offset. */
struct window {
#ifdef HAVE_CAST
	const u8 *bytes;
#else
	u8 bytes[48] __attribute__((aligned(8)));
#endif
};

static __always_inline void window_open(struct window *window, u64 at)
{
#ifdef HAVE_CAST
	window->bytes = CAST(at);
#else
	__builtin_memset(window->bytes, 0, sizeof(window->bytes));
	bpf_probe_read_kernel(window->bytes, sizeof(window->bytes), (void *)at);
#endif
}

/* What is looked at of a struct sk_buff: the members from `len` on, or a copy of them. Those before are pointers, of which
 * few are asked for, and 48 bytes of scratch. */
#define MEMBERS_START (sk_buff__len & ~7)

struct sk_buff_view {
	u64 skb;
	u64 head; /* its buffer; of none, nothing else is looked at */
#ifdef HAVE_CAST
	const u8 *members;
#else
	u8 members[sk_buff__SIZE - MEMBERS_START] __attribute__((aligned(8)));
#endif
};

#ifdef HAVE_CAST
/* Each load through a cast is checked, so it takes the whole word that a number lies in; clang takes it once for all
 * its numbers. */
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define WORD_SHIFT(type, offset) (8 * (8 - sizeof(type) - ((offset)&7)))
#else
#define WORD_SHIFT(type, offset) (8 * ((offset)&7))
#endif
#define WORD_PART_OF(type, word, offset) ((type)((word) >> WORD_SHIFT(type, offset)))
#define WORD_PART(type, pointer, offset) WORD_PART_OF(type, LOAD_THROUGH(u64, pointer, (offset) & ~7), offset)
#define WINDOW(window, type, offset)	 WORD_PART(type, (window)->bytes, offset)
#define MEMBER(view, type, member)	 WORD_PART(type, (view)->members, member - MEMBERS_START)
#else
#define WINDOW(window, type, offset) (*(const type *)((window)->bytes + (offset)))
#define MEMBER(view, type, member)   (*(type *)((view)->members + member - MEMBERS_START))
#endif
#define BITS(view, member) ((MEMBER(view, u8, member) >> member##_SHIFT) & ((1 << member##_BITS) - 1))

/* Its buffer; 0 where it has none, or cannot be read. Most sk_buffs are nobody's, and of them no more is read. */
static __always_inline u64 sk_buff_open(struct sk_buff_view *view, u64 skb)
{
	view->skb = skb;
#ifdef HAVE_CAST
	view->members = CAST(skb + MEMBERS_START);
	view->head = MEMBER(view, u64, sk_buff__head);
#else
	view->head = read_pointer(skb, sk_buff__head);
#endif
	return view->head;
}

/* Read its members. 0, or not where that cannot be. */
static __always_inline int sk_buff_read(struct sk_buff_view *view)
{
#ifdef HAVE_CAST
	return 0;
#else
	return bpf_probe_read_kernel(view->members, sizeof(view->members),
				     (void *)(view->skb + MEMBERS_START));
#endif
}

/* Its device, which lies further ahead and is of interest only once the filter has taken the packet. */
static __always_inline u64 sk_buff_device(const struct sk_buff_view *view)
{
	return LOAD(u64, view->skb + sk_buff__dev);
}
