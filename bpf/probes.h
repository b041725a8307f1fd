/* SPDX-License-Identifier: Apache-2.0
 *
 * The programs. For each kind of probe there is one function, and where a probe has to say which it is, a
 * cookie does: compiling is what takes the time when a capture starts, loading the same function once more
 * takes a millisecond. (Each tracepoint gets a load of its own: the kernel skips a program that is
 * interrupted by itself, and this way an interrupt's packets are not missed because some other tracepoint was
 * at work.)
 *
 * Kernel functions have one load for all, and a cookie that the kernel carries. The others have theirs in the
 * program: the tracer writes it there for each load (toolchain.py), since kernels before 6.10 carry none for
 * tracepoints.
 */

#define WHERE(func_, kind_, location_, reason_)                                                              \
	((struct where){.func = (func_), .kind = (kind_), .reason = (reason_), .location = (location_)})

/* An instruction with a number that stands nowhere else, for the tracer to find and replace. */
static __always_inline u64 cookie_of_load(void)
{
	u64 cookie;

	asm volatile("%0 = %1 ll" : "=r"(cookie) : "i"(LOAD_COOKIE));
	return cookie;
}

/* What a tracepoint's cookie holds. An argument that it has not is 15. */
#define COOKIE_FUNC(cookie)	((u16)(cookie))
#define COOKIE_KIND(cookie)	((u16)((cookie) >> 16))
#define COOKIE_SKB(cookie)	((cookie) >> 32 & 15)
#define COOKIE_LOCATION(cookie) ((cookie) >> 36 & 15)
#define COOKIE_REASON(cookie)	((cookie) >> 40 & 15)
#define COOKIE_SOCKET(cookie)	((cookie) >> 44 & 15)
#define COOKIE_DROP(cookie)	((cookie) >> 48 & 1)
#define COOKIE_RANK(cookie)	((cookie) >> 52 & 15)
#define NO_ARGUMENT		15

/* A TC program lets the packet pass on to whoever is next (TCX_NEXT, TC_ACT_UNSPEC). The context of a TC
 * program is the packet's sk_buff itself. */
#define TC_PASS -1

#ifdef HAVE_TC
int tc(struct __sk_buff *ctx)
{
	u64 cookie = cookie_of_load();
	struct state *state = state_of_capture();
	struct where where = WHERE(COOKIE_FUNC(cookie), KIND_ENTRY | KIND_DEVICE, 0, 0);

	where.rank = COOKIE_RANK(cookie);
	where.untold = 1;
	where.beside = 1;
	hop(state, ctx, (u64)ctx, where);
	return TC_PASS;
}
#endif

/* One program for all five hooks of netfilter, first in each: what it lets pass is not dropped yet. The
 * hooks' functions stand behind one another in the start record, in the order of enum nf_inet_hooks. */
#ifdef FUNC_netfilter
int netfilter(u64 *ctx)
{
	u32 hook = read_u32(ctx[0], nf_hook_state__hook) & 0xff;
	struct state *state = state_of_capture();
	u16 kind = KIND_HOOK;

	if (hook >= 5)
		return 1;
	if (NETFILTER_ENTRIES >> hook & 1)
		kind |= KIND_ENTRY;
	if (hook == 1) /* NF_INET_LOCAL_IN */
		kind |= KIND_SOCKET;
	if (hook == 3) /* NF_INET_LOCAL_OUT */
		kind |= KIND_BIRTH;
	struct where where = WHERE(FUNC_netfilter + hook, kind, 0, 0);

	where.rank = hook == 3 ? RANK_NEW : 0;
	where.untold = 1;
	hop(state, 0, ctx[1], where);
	return 1; /* NF_ACCEPT */
}
#endif

static __always_inline u64 argument(void *ctx, u32 number)
{
	/* Read as memory: a program that names an argument cannot be attached where there are fewer. */
	return number == NO_ARGUMENT ? 0 : read_pointer((u64)ctx, number * sizeof(u64));
}

/* neigh_event_send_done(neighbour, result): a packet that waits for the neighbour's address was just put at
 * the tail of its queue. */
static __always_inline u64 queued_at_neighbour(void *ctx)
{
	u64 neighbour = argument(ctx, 0);
	u64 last;

	if (!(u32)argument(ctx, 1))
		return 0;
	last = read_pointer(neighbour, neighbour__arp_queue_prev);
	return last == neighbour + neighbour__arp_queue ? 0 : last;
}

/* Some callers free what was used as meant in the same way, and say so. Kernels before 5.17 have no reasons. */
static __always_inline int is_drop_reason(u32 reason)
{
#ifdef REASON_CONSUMED
	if (reason == REASON_CONSUMED)
		return 0;
#endif
#ifdef HAVE_REASONS
	if (!reason)
		return 0;
#endif
	return 1;
}

/* Nothing is followed, and this is no place where it begins. */
static __always_inline int is_idle(const struct state *state, u64 cookie)
{
	return !state->tagged && !(COOKIE_KIND(cookie) & KIND_ENTRY);
}

/* Nothing is followed, and this packet was refused just before: here most packets are through. (Where some are followed,
 * hop() looks.) */
static __always_inline int is_refused(const struct state *state, u64 cookie, u64 skb)
{
	return !state->tagged && COOKIE_KIND(cookie) & KIND_AGAIN &&
	       was_refused(read_pointer(skb, sk_buff__head), COOKIE_RANK(cookie));
}

static __always_inline int tracepoint_hop(void *ctx, u64 cookie)
{
	struct state *state = state_of_capture();

	if (is_idle(state, cookie))
		return 0;
	u16 kind = COOKIE_KIND(cookie);
	u64 skb = kind & KIND_NEIGHBOUR ? queued_at_neighbour(ctx) : argument(ctx, COOKIE_SKB(cookie));
	if (is_refused(state, cookie, skb))
		return 0;
	struct where where = WHERE(COOKIE_FUNC(cookie), kind, argument(ctx, COOKIE_LOCATION(cookie)),
				   argument(ctx, COOKIE_REASON(cookie)));

	where.ctx = ctx;
	where.rank = COOKIE_RANK(cookie);
	where.beside = 1;
	if (COOKIE_DROP(cookie) && is_drop_reason(where.reason)) {
		where.socket = argument(ctx, COOKIE_SOCKET(cookie));
		where.drop = 1;
	}
#ifdef CONSUMED_UNTOLD
	/* consume_skb of kernels before 6.3 */
	if (kind & KIND_END && COOKIE_LOCATION(cookie) == NO_ARGUMENT)
		where.freed = 1;
#endif
	return hop(state, 0, skb, where);
}

int tracepoint(struct bpf_raw_tracepoint_args *ctx)
{
	return tracepoint_hop(ctx, cookie_of_load());
}

/* Kernel functions. One program for all: the cookie says which it is, and which register holds the packet. */
#ifdef HAVE_KPROBES
#ifdef bpf_trace_run_ctx__bpf_cookie
static u64 (*function_address)(void *ctx) = (void *)173; /* BPF_FUNC_get_func_ip */
static u64 (*attach_cookie)(void *ctx) = (void *)174;	 /* BPF_FUNC_get_attach_cookie */

/* The cookies of kprobe.multi, once more. The kernel finds a hit's cookie by a binary search, which costs more than
 * most of what is done here; so each function has one place in a table, by its address. Where two share a place, or
 * the cookie is not of kprobe.multi, the kernel is asked.
 *
 * At its entry a function is known by where the program was called from, a few bytes past its start: functions begin at
 * multiples of 16. (Those that do not are left to the kernel; cookies.py sees to it that none is taken for another.) */
#define FUNCTION_ALIGNMENT 16
struct known_cookie {
	u64 address;
	u64 cookie;
};

struct known_cookies {
	struct known_cookie at[1 << COOKIES_BITS];
};

ONE_VALUE(struct known_cookies, known_cookies);
#else
BPF_HASH(kprobe_cookies, u64, u64, 16384); /* by the address of the breakpoint */
#endif

#ifdef SEARCH_REGISTERS
/* A module's function on a kernel whose modules have no BTF: nothing tells which argument the packet is. It is
 * the one whose buffer is followed. */
static __always_inline u64 followed_argument(struct state *state, u64 *ctx)
{
	const u32 places[] = {REGISTER_0, REGISTER_1, REGISTER_2, REGISTER_3, REGISTER_4};

	if (!state->tagged)
		return 0;
#pragma unroll
	for (int i = 0; i < 5; i++) {
		u64 candidate = ctx[places[i] / 8];
		u64 head = read_pointer(candidate, sk_buff__head);

		if (head && (path_at(state, head) || (state->moved && moved.lookup(&candidate))))
			return candidate;
	}
	return 0;
}
#endif

#ifdef bpf_trace_run_ctx__bpf_cookie
static __always_inline u64 cookie_at(void *ctx, u64 address)
{
	struct known_cookies *all = ONLY_VALUE(known_cookies);
	struct known_cookie *known = &all->at[address * COOKIES_HASH >> (64 - COOKIES_BITS)];

	if (address && known->address == address)
		return known->cookie;
	return attach_cookie(ctx);
}

static __always_inline u64 kprobe_cookie(u64 *ctx)
{
	return cookie_at(ctx, ctx[REGISTER_IP / 8] & ~(u64)(FUNCTION_ALIGNMENT - 1));
}

/* Where the program may have been called from a return. */
static __always_inline u64 return_cookie(u64 *ctx)
{
	return cookie_at(ctx, function_address(ctx));
}
#else
static __always_inline u64 kprobe_cookie(u64 *ctx)
{
	u64 address = ctx[REGISTER_IP / 8];
	u64 *known = kprobe_cookies.lookup(&address);

	return known ? *known : 0;
}
#endif

/* A register at the probe. The verifier wants its place as a constant, and clang would make one load of several, at a
 * place that it computes. */
static __always_inline u64 register_at(u64 *ctx, u32 place)
{
	u64 value;

	asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(value) : "r"(ctx), "i"(place));
	return value;
}

static __always_inline u64 packet_of_kprobe(struct state *state, u64 *ctx, u64 cookie)
{
	u64 number = COOKIE_SKB(cookie);

	if (number == 0)
		return register_at(ctx, REGISTER_0);
	if (number == 1)
		return register_at(ctx, REGISTER_1);
	if (number == 2)
		return register_at(ctx, REGISTER_2);
	if (number == 3)
		return register_at(ctx, REGISTER_3);
#ifdef SEARCH_REGISTERS
	if (number == NO_ARGUMENT)
		return followed_argument(state, ctx);
#endif
	return register_at(ctx, REGISTER_4);
}

static __always_inline int kprobe_hop(struct state *state, u64 *ctx, u64 cookie)
{
	u64 skb = packet_of_kprobe(state, ctx, cookie);

	if (is_refused(state, cookie, skb))
		return 0;
	struct where where = WHERE(COOKIE_FUNC(cookie), COOKIE_KIND(cookie), 0, 0);

#ifdef SOCKET_UNTOLD
	/* Before 6.11 kfree_skb does not tell for which socket a packet was; functions on its way do. */
	if (COOKIE_SOCKET(cookie) == 0)
		where.socket = ctx[REGISTER_0 / 8];
#endif
	where.ctx = ctx;
	where.rank = COOKIE_RANK(cookie);
	if (where.kind & KIND_RELEASE) {
		where.freed = 1;
#ifdef FUNC_tcp_drop
		where.drop = 1;
#endif
	}
#ifdef HAVE_RETURNS
	else /* A packet's end has no duration. */
		where.call = where.location = ctx[REGISTER_SP / 8];
#endif
	return hop(state, 0, skb, where);
}

int kprobe(u64 *ctx)
{
	u64 cookie = kprobe_cookie(ctx);
	struct state *state = state_of_capture();

#ifdef HAVE_RETURNS
	forget_call(state, ctx[REGISTER_SP / 8], COOKIE_FUNC(cookie));
#endif
	if (cookie)
		kprobe_hop(state, ctx, cookie);
	return 0;
}

/* The same where no packet begins: most functions, which most of the time nobody's packets pass. */
int kprobe_passing(u64 *ctx)
{
	struct state *state = state_of_capture();

	if (!state->tagged)
		return 0;
	u64 cookie = kprobe_cookie(ctx);

	if (cookie)
		kprobe_hop(state, ctx, cookie & ~((u64)(KIND_ENTRY | KIND_AGAIN) << 16));
	return 0;
}

#ifdef HAVE_RETURNS
int kprobe_return(u64 *ctx)
{
	struct state *state = state_of_capture();

	if (has_open_calls(state))
		close_call(state, ctx[REGISTER_SP / 8] - RETURN_POPS, COOKIE_FUNC(return_cookie(ctx)));
	return 0;
}

/* Entry and return in one program. Its result at an entry says whether the return is wanted; 0 is yes. There is no
 * need to be told which of the two it is: it is the return of an open call, or else an entry, since a call whose
 * stack began below this one's is over. */
int kprobe_session(u64 *ctx)
{
	struct state *state = state_of_capture();
	u64 cookie = return_cookie(ctx);
	u64 stack_pointer = ctx[REGISTER_SP / 8];

	if (has_open_calls(state) && close_call(state, stack_pointer - RETURN_POPS, COOKIE_FUNC(cookie)))
		return 0;
	return !kprobe_hop(state, ctx, cookie);
}
#endif
#endif

/* kfree(call_site, pointer) and kmem_cache_free(call_site, pointer, ...) */
#ifdef FUNC_kfree
int freed_kfree(struct bpf_raw_tracepoint_args *ctx)
{
	return freed(ctx, ctx->args[1], WHERE(FUNC_kfree, KIND_END, ctx->args[0], 0));
}
#endif

#ifdef FUNC_kmem_cache_free
int freed_kmem_cache_free(struct bpf_raw_tracepoint_args *ctx)
{
	return freed(ctx, ctx->args[1], WHERE(FUNC_kmem_cache_free, KIND_END, ctx->args[0], 0));
}
#endif

/* Not attached: run by the tracer (BPF_PROG_TEST_RUN). */
int is_read(struct bpf_raw_tracepoint_args *ctx)
{
	return was_read(ctx->args[0]);
}
