from hypothesis import given
from hypothesis import strategies as st

from analyzer.model.role import Role, pack, quadrant, unpack


def test_the_role_word_has_the_fields_where_the_patch_puts_them() -> None:
    assert pack(4, 1, 0, 0) == 0x14
    assert pack(2, 2, 3, 0) == 0x322
    assert pack(0, 1, 1, 1) == 0x10110


@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 3), st.integers(0, 1))
def test_unpacking_gives_back_what_was_packed(glevels: int, level: int, part: int, metaphysical: int) -> None:
    word = pack(glevels, level, part, metaphysical)
    assert unpack(word) == Role(glevels, level, part, metaphysical)
    assert unpack(word).word == word


def test_a_two_level_table_has_two_quadrants_and_a_directory_four() -> None:
    assert [quadrant(i << 21, 2, 1) for i in range(4)] == [0, 1, 0, 1]
    assert [quadrant(i << 30, 2, 2) for i in range(4)] == [0, 1, 2, 3]


def test_tables_of_512_entries_have_one_quadrant() -> None:
    assert {quadrant(va << 21, glevels, level) for va in range(64) for glevels in (3, 4) for level in (1, 2)} == {0}
