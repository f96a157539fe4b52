"""The cache by itself: each rule of part 4 of the design on a few pages."""

import pytest

from analyzer.facts.sharing import sharing
from analyzer.model.cache import ShadowCache, ShadowPage, hash_function
from analyzer.model.counters import Counters
from analyzer.model.journal import JournalWriter
from analyzer.model.parameters import Parameters
from analyzer.model.role import pack
from x86.paging import PRESENT, WRITABLE

LEAF = pack(4, 1, 0, 0)
DIRECTORY = pack(4, 2, 0, 0)
BIG = pack(4, 1, 0, 1)


def make_cache(**parameters: int) -> ShadowCache:
    return ShadowCache(Parameters(**parameters), Counters(), JournalWriter())


def get(cache: ShadowCache, gfn: int, role: int = LEAF, parent: int | None = None) -> ShadowPage:
    page = cache.get_page(gfn, role, parent, 0)
    assert page is not None
    return page


def test_a_second_lookup_of_the_same_key_finds_the_page() -> None:
    cache = make_cache()
    assert get(cache, 7) is get(cache, 7)
    assert (cache.counters.get_page_misses, cache.counters.get_page_hits) == (1, 1)


def test_another_role_makes_another_page_of_the_same_frame() -> None:
    cache = make_cache()
    assert get(cache, 7, LEAF) is not get(cache, 7, DIRECTORY)


def test_lookup_page_sees_no_metaphysical_page() -> None:
    cache = make_cache()
    get(cache, 512, BIG)
    assert cache.lookup_page(512) is None
    page = get(cache, 512, LEAF)
    assert cache.lookup_page(512) is page


def test_the_second_parent_makes_a_chain_and_the_seventh_a_second_chain_in_front() -> None:
    cache = make_cache()
    page = get(cache, 7, LEAF, 1000)
    assert not page.multimapped
    for parent in range(1001, 1007):
        cache.add_parent(page, parent)
    assert page.parent_ptes == [[1005, 1006], [1000, 1001, 1002, 1003, 1004]]
    assert cache.counters.pte_chain_allocated == 2


def test_removing_shifts_slots_down_and_a_page_stays_multimapped_until_its_last_parent_goes() -> None:
    cache = make_cache()
    page = get(cache, 7, LEAF, 1)
    for parent in (2, 3):
        cache.add_parent(page, parent)
    cache.remove_parent(page, 1)
    assert page.parent_ptes == [[2, 3]]
    cache.remove_parent(page, 3)
    assert page.multimapped
    cache.remove_parent(page, 2)
    assert not page.multimapped
    assert page.parents() == []
    assert cache.counters.pte_chain_freed == 1


def test_a_half_empty_chain_is_refilled_if_it_is_met_first() -> None:
    cache = make_cache()
    page = get(cache, 7, LEAF, 0)
    for parent in range(1, 6):
        cache.add_parent(page, parent)
    cache.remove_parent(page, 5)
    cache.remove_parent(page, 2)
    cache.add_parent(page, 9)
    assert page.parent_ptes == [[0, 1, 3, 4, 9]]


def test_zapping_clears_the_parents_entry_and_leaves_children_as_orphans() -> None:
    cache = make_cache()
    directory = get(cache, 1, DIRECTORY)
    entry = directory.index << 9 | 3
    leaf = get(cache, 2, LEAF, entry)
    cache.set_spte(entry, leaf.index << 12 | PRESENT)
    cache.zap_page(directory, "flood")
    assert not directory.live
    assert leaf.live
    assert leaf.parents() == []
    again = get(cache, 1, DIRECTORY)
    leaf2 = get(cache, 2, LEAF, again.index << 9)
    assert leaf2 is leaf
    cache.set_spte(again.index << 9, leaf.index << 12 | PRESENT)
    cache.zap_page(leaf, "flood")
    assert cache.spte(again.index << 9) == 0


def test_a_root_in_use_is_emptied_and_kept_and_becomes_the_youngest() -> None:
    cache = make_cache()
    root, other = get(cache, 1, DIRECTORY), get(cache, 2, DIRECTORY)
    root.root_count = 1
    root.entries[5] = 0
    cache.zap_page(root, "evict")
    assert root.live
    assert list(cache.active.values()) == [other, root]
    assert cache.counters.zaps_root_kept == 1


def test_a_new_shadow_takes_write_permission_from_every_mapping_of_its_frame() -> None:
    cache = make_cache()
    table = get(cache, 1)
    for index in range(6):
        table.entries[index] = 9 << 12 | PRESENT | WRITABLE
        cache.rmap_add(table.index << 9 | index)
    assert cache.counters.rmap_desc_allocated == 2
    get(cache, 9)
    assert all(not table.entries[index] & WRITABLE for index in range(6))
    assert cache.counters.rmap_write_protected_sptes == 6
    assert 9 not in cache.rmap


def test_eviction_takes_the_oldest_first_and_hits_make_none_younger() -> None:
    cache = make_cache(pages=30, buckets=30)
    pages = [get(cache, gfn) for gfn in range(28)]
    get(cache, 0)
    cache.free_some_pages()
    assert len(cache.free) == 25
    assert [page.live for page in pages] == [False] * 23 + [True] * 5


def test_eviction_ends_when_every_page_is_a_root_in_use() -> None:
    cache = make_cache(pages=30, buckets=30)
    for gfn in range(30):
        get(cache, gfn, DIRECTORY).root_count = 1
    cache.free_some_pages()
    assert cache.free == []


def test_an_empty_free_list_gives_no_page() -> None:
    cache = make_cache(pages=29, buckets=29)
    for gfn in range(29):
        get(cache, gfn)
    assert cache.get_page(99, LEAF, None, 0) is None


@pytest.mark.parametrize(("name", "buckets", "gfn", "bucket"), [("mod", 256, 0x512, 0x12), ("hash_64", 4096, 1, 0x61C)])
def test_hash_functions(name: str, buckets: int, gfn: int, bucket: int) -> None:
    assert hash_function(Parameters(hash=name, buckets=buckets))(gfn) == bucket


def test_only_one_part_of_the_key_counts_as_keeping_pages_apart() -> None:
    cache = make_cache()
    get(cache, 5, pack(2, 1, 0, 0))
    get(cache, 5, pack(2, 1, 1, 0))
    get(cache, 5, pack(2, 2, 0, 0))
    facts = sharing(cache.journal.finish())
    assert facts.key == {"quadrant": 1, "level": 1, "glevels": 0, "metaphysical": 0}
    spread = facts.spread
    assert (spread["quadrant"].now, spread["level"].now, spread["glevels"].now, spread["several"].now) == (1, 1, 0, 1)
