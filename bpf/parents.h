/* SPDX-License-Identifier: Apache-2.0
 *
 * Packets that are made of others (see identity.h).
 */

/* The packets that others may be made of just now (see identity.h): those that are cut into segments, or copied, by
 * flow and CPU; those that may be cut into fragments, which are large and not TCP's, by addresses, protocol,
 * identification and CPU. The last 4096 are known. What a fragment is cut into again is the whole's. */
struct source {
	u32 packet;
	u32 seen; /* us; odd: it is copied */
	u32 entered;
};

#define LARGE  1280
#define KNOWN  1000000000 /* ns in which a packet with the same identification is the same */
#define US(ns) ((u32)((ns) >> 10) & ~1u)

BPF_TABLE("lru_hash", u64, struct source, sources, 4096);

static __always_inline u64 source_key(u64 hash)
{
	return hash ^ (u64)(bpf_get_smp_processor_id() + 1) * 0x9E3779B97F4A7C15ull;
}

static __always_inline u64 whole_key(const struct header *header)
{
	u64 known = header->ident ? (u32)header->ident << 8 | header->protocol : 0;

	return source_key(header->addresses ^ known * 0x165667B19E3779F9ull);
}

static __always_inline int is_fresh(const struct source *source, u64 now, u64 within)
{
	return US(now) - (source->seen & ~1u) < US(within);
}

static __always_inline int is_gso(const struct sk_buff_view *view)
{
	return (read_u32(view->head, MEMBER(view, u32, sk_buff__end) + skb_shared_info__gso_size) & 0xffff) !=
	       0;
}

/* What note_source() has to look at. */
static __always_inline int may_be_source(const struct sk_buff_view *view, u16 kind)
{
	return kind & KIND_COPY || MEMBER(view, u32, sk_buff__data_len) ||
	       MEMBER(view, u32, sk_buff__len) > LARGE;
}

static __always_inline void note_source(const struct path *path, const struct sk_buff_view *view,
					const struct header *header, u16 kind, u64 now)
{
	struct source source;
	struct source *known;
	u64 key = 0;

	if (!header->addresses || !may_be_source(view, kind))
		return;
	source = (struct source){.packet = path->packet, .seen = US(now), .entered = path->entered};
	if (kind & KIND_COPY) {
		source.seen |= 1;
		key = source_key(path->flow);
	} else if (MEMBER(view, u32, sk_buff__data_len) && is_gso(view)) {
		key = source_key(path->flow);
	} else if (path->len > LARGE && header->protocol != 6 && !header->fragment) {
		key = whole_key(header);
	}
	if (!key)
		return;
	known = sources.lookup(&key);
	if (known && path->parent && path->parent == known->packet && is_fresh(known, now, FRESH))
		return; /* there may be more of its kind to come */
	sources.update(&key, &source);
}

/* A function at an interface, as one number. */
static __always_inline u32 entered_at(const struct where *where, const struct place *place)
{
	return where->func * 0x9E3779B1u ^ place->ifindex * 0x85EBCA77u ^ place->netns;
}

/* A sender writes one packet of a flow after the other. The next one is no segment of the last: it begins above the
 * place where packets are cut, or where the last one began, or is to be cut itself, or is TCP's, which sends one of a
 * pair of sk_buffs (fclone). */
static __always_inline u32 parent_of(const struct sk_buff_view *view, const struct header *header, u64 flow,
				     u16 kind, u32 entered, u64 now)
{
	struct source *source;
	u64 key = header->fragment ? whole_key(header) : source_key(flow);
	u64 within = header->fragment && header->ident ? KNOWN : FRESH;

	if (!header->addresses || kind & KIND_RECEIVE)
		return 0;
	source = sources.lookup(&key);
	if (!source || !is_fresh(source, now, within))
		return 0;
	if (!(source->seen & 1) &&
	    (kind & KIND_BIRTH || source->entered == entered || BITS(view, sk_buff__fclone) || is_gso(view)))
		return 0;
	return source->packet;
}
