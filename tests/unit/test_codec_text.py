"""The text codec: offsets, windows and padding, over the toy tokenizer (whose file says: cut and pad at 8)."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toys import build_toy_base
from workers.codecs.text import TextCodec, Window, pad

CLS, SEP = 2, 3


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_base(tmp_path_factory.mktemp("base")) / "tokenizer.json"


@pytest.fixture(scope="module")
def codec(tokenizer_file: Path) -> TextCodec:
    return TextCodec(tokenizer_file, max_length=12, pad_token_id=0)


def words_of(windows: list[Window]) -> list[int]:
    return [word for window in windows for word, _ in window.first_piece]


def test_rows_are_cut_at_max_length_and_not_at_the_files_own(codec: TextCodec) -> None:
    (row,) = codec.encode(["the dog " * 20])
    assert len(row.ids) == 12
    assert (row.ids[0], row.ids[-1]) == (CLS, SEP)


def test_rows_are_not_padded(codec: TextCodec) -> None:
    assert [len(row.ids) for row in codec.encode(["dog", ""])] == [3, 2]


def test_offsets_count_python_characters(codec: TextCodec) -> None:
    text = "😀 dog 👩‍🚀 cat"
    (row,) = codec.encode([text])
    assert {text[a:b] for a, b in row.offsets} >= {"dog", "cat"}


def test_half_a_surrogate_pair_is_read_as_an_unknown_sign(codec: TextCodec) -> None:
    text = "\ud83d dog"
    (row,) = codec.encode([text])
    assert "dog" in {text[a:b] for a, b in row.offsets}


def test_names_of_special_tokens_in_a_text_are_plain_text(codec: TextCodec) -> None:
    (row,) = codec.encode(["dog [SEP] cat"])
    assert row.ids.count(SEP) == 1


def test_count_is_the_length_before_cutting(codec: TextCodec) -> None:
    assert codec.count(["dog", "the " * 30]) == [3, 32]


def test_a_max_length_without_room_for_text_is_refused(tokenizer_file: Path) -> None:
    with pytest.raises(ValueError, match="max_length is 2; the tokenizer alone adds 2: give at least 3"):
        TextCodec(tokenizer_file, max_length=2, pad_token_id=0)


def test_a_short_list_is_one_window(codec: TextCodec) -> None:
    (window,) = codec.encode_words(["the", "dogs", "cat"])
    assert window.first_piece == [(0, 1), (1, 2), (2, 4)]
    assert (window.ids[0], window.ids[-1], len(window.ids)) == (CLS, SEP, 6)


def test_an_empty_list_is_one_empty_window(codec: TextCodec) -> None:
    assert codec.encode_words([]) == [Window([CLS, SEP], [])]


def test_words_without_pieces_are_left_out(codec: TextCodec) -> None:
    assert words_of(codec.encode_words(["dog", "\u200b", "", "cat"])) == [0, 3]


def test_a_word_of_the_middle_has_context_on_both_sides(codec: TextCodec) -> None:
    windows = codec.encode_words(["dog"] * 100, stride=4)
    for window in windows[1:-1]:
        positions = [position for _, position in window.first_piece]
        assert min(positions) >= 3
        assert max(positions) <= len(window.ids) - 3


@given(words=st.lists(st.sampled_from(["dog", "dogs", "a.b", "xyz", "\u200b", "😀"]), max_size=60))
def test_windows_cover_every_word_once_and_fit(codec: TextCodec, words: list[str]) -> None:
    windows = codec.encode_words(words)
    assert words_of(windows) == [i for i, word in enumerate(words) if word != "\u200b"]
    assert all(len(window.ids) <= 12 for window in windows)


@given(text=st.text(max_size=60))
def test_split_words_gives_true_offsets_and_drops_blanks_only(codec: TextCodec, text: str) -> None:
    parts = codec.split_words(text)
    assert all(text[start:end] == word for word, start, end in parts)
    assert "".join(word for word, _, _ in parts) == "".join(text.split())


def test_pad_marks_what_is_real() -> None:
    ids, mask = pad([[5, 6, 7], [8], []], 9)
    np.testing.assert_array_equal(ids, [[5, 6, 7], [8, 9, 9], [9, 9, 9]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert ids.dtype == mask.dtype == np.dtype(np.int64)


def test_pad_of_nothing_is_empty() -> None:
    ids, mask = pad([], 0)
    assert ids.shape == mask.shape == (0, 0)


def test_the_codec_needs_no_model_runtime() -> None:
    import subprocess

    code = "import sys, workers.codecs.text; print(*(m in sys.modules for m in ('torch', 'transformers')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
