"""Delimited text files (CSV, TSV): read by arrow as words, each column then taken for numbers or for categories."""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from bayeslora.datasets.validation import NO_NUMBER
from bayeslora.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

DECIMALS = (".", ",")
"""Decimal marks that numbers may have."""

GROUPED = r"\p{Nd}{1,3}(?:[.,'_ \x{a0}\x{202f}’]\p{Nd}{2,3})*[.,'_ \x{a0}\x{202f}’]\p{Nd}{3}(?:[.,]\p{Nd}+)?"
CURRENCY = r"(?:[A-Z]{0,3}\p{Sc}|(?:USD|EUR|GBP|JPY|CHF|INR|CNY|CAD|AUD|SEK|NOK|DKK|PLN|BRL|KRW|Rs\.?)(?:\s|\b))?"
UNIT = r"(?:\s*[\pL\p{Sc}°µ%‰²³.*·/^]{1,12}(?:[/^]-?\d+\pL*)?){0,3}"
LIKE_NUMBER = (
    rf"^\p{{Cf}}*[('\"]?{CURRENCY}\s*[+−–-]?{CURRENCY}\s*"
    rf"(?:{GROUPED}|\p{{Nd}}+(?:[.,]\p{{Nd}}+)?(?:[eEdD][+−-]?\p{{Nd}}+)?|\p{{Nd}}+/\p{{Nd}}+)\p{{Cf}}*{UNIT}[)'\"]?$"
)
"""What people write for a number: other digits and marks, thousands separators, a currency, a unit, brackets."""
FEWEST_NUMBERS, MOST_WORDS = 3, 3
"""Different numbers for each word that make a column one of numbers, where there are so few words for none."""
ORDINAL = r"\d(?:st|nd|rd|th)\b"
DATE = r"^(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})(?:[ T]\d{1,2}:.*)?$"
NO_TABLES = {
    b"PK\x03\x04": "a zip archive, as files of Excel (.xlsx) and NumPy (.npz) are; save or unpack it as CSV",
    b"\xd0\xcf\x11\xe0": "an old file of Excel (.xls); save it as CSV",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"PAR1": "a parquet file; write it as CSV, e.g. by pandas",
    b"\x93NUMPY": "an array of NumPy; save it by np.savez for dataset=npz",
    b"%PDF": "a PDF; save the table in it as CSV",
    b"<!DOCTYPE": "a web page; fetch the file itself",
    b"<html": "a web page; fetch the file itself",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself by git lfs pull",
    b"[{": "JSON; write it as CSV",
    b'{"': "JSON; write it as CSV",
}
"""How files begin that are no delimited text, and what they are."""
CARRIAGE_RETURN = "\ufdd0"
"""Stands for a carriage return within a cell, where arrow would end the line: a code point that is no character."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        values: float64, int64 or bool [N], or words [N]; anything where `missing`.
        missing: bool [N].
        dates: whether most of the words are dates.
    """

    values: np.ndarray
    missing: np.ndarray
    dates: bool = False

    @property
    def is_words(self) -> bool:
        """Whether it holds words, not numbers."""
        return self.values.dtype.kind == "O"

    def take(self, rows: np.ndarray) -> Column:
        """The rows at `rows`: int64 [M] or bool [N]."""
        return Column(self.values[rows], self.missing[rows], self.dates)


def read_text(file: Path, encoding: str | None = "utf-8") -> str:
    """A text file, without the mark of its byte order.

    Args:
        file: to read.
        encoding: what `dataset.encoding` says; None: UTF-8, and there is no such setting.

    Raises:
        DataError: it is in another encoding, or cannot be read.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error
    if kind := next((words for start, words in NO_TABLES.items() if content.lstrip().startswith(start)), None):
        raise DataError(f"{file} is no table in text but {kind}")
    codec = codecs.lookup(encoding or "utf-8").name
    utf8 = codec in ("utf-8", "utf-8-sig")
    if encoding is None:
        advice = "fetch it again, or save it as UTF-8"
    elif utf8:
        advice = "save it as UTF-8, or set dataset.encoding=latin-1, cp1252 or what it was written in"
    else:
        advice = "save it as UTF-8, or set the right dataset.encoding"
    start = content[:1000]
    zeros = start.count(0) / max(len(start), 1)
    wide = "UTF-32" if zeros > 1 / 2 else "UTF-16" if zeros > 1 / 3 or start[:2] in (b"\xff\xfe", b"\xfe\xff") else None
    if utf8 and wide:
        excel = '; set dataset.encoding=utf-16, and dataset.separator="\\t" for a table of Excel'
        advice = excel * (encoding is not None and wide == "UTF-16")
        raise DataError(f"{file} is not text in UTF-8 but, it seems, in {wide}; save it as UTF-8{advice}")
    if utf8 and zeros:
        raise DataError(f"{file} is not text: it holds bytes of 0; save it as a table in text, in UTF-8")
    if not codec.startswith("utf") and _is_utf8_beyond_ascii(content):
        raise DataError(
            f"{file} is text in UTF-8, which dataset.encoding={encoding} would misread; leave the setting out"
        )
    try:
        return content.decode("utf-8-sig" if encoding is None or utf8 else encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file} is not text in {'UTF-8' if encoding is None else encoding.upper()}, byte"
            f" {content[error.start]:#x} in line {line}; {advice}"
        ) from error
    except UnicodeError as error:
        raise DataError(f"{file} is not text in {str(encoding).upper()} ({error}); {advice}") from error


def _is_utf8_beyond_ascii(content: bytes) -> bool:
    """Whether bytes are UTF-8 with letters beyond ASCII: what is in another encoding is not that by chance."""
    try:
        return not content.isascii() and bool(content.decode())
    except UnicodeDecodeError:
        return False


def read_rows(
    file: Path, separator: str, *, encoding: str | None = "utf-8", quoted: bool = True, skip_broken: bool = False
) -> tuple[list[str], list[pa.ChunkedArray], int]:
    """The cells of a file as they are written.

    Args:
        file: whose first line names the columns.
        separator: between columns, one character.
        encoding: of the text, as `read_text` has it.
        quoted: whether cells may be in quotation marks; else these are ordinary characters.
        skip_broken: leave out lines with too few or too many columns; else they are an error.

    Returns:
        The names, the cells below them by column, and the number of lines left out.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    text = read_text(file, encoding).replace("\r\n", "\n").replace("\r", "\n" if quoted else CARRIAGE_RETURN)
    broken = 0

    def skip(_: object) -> str:
        nonlocal broken
        broken += 1
        return "skip"

    # arrow takes types by the columns' names, so how many there are is known before it reads them as text
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    try:
        header = next((row for row in csv.reader(io.StringIO(text), delimiter=separator, quoting=quoting) if row), None)
        if header is None:
            raise DataError(f"{file} is empty; its first line must name the columns")
        names = [f"f{place}" for place in range(len(header))]
        table = arrow.read_csv(
            io.BytesIO(text.encode()),
            read_options=arrow.ReadOptions(column_names=names, use_threads=False, block_size=max(1 << 20, len(text))),
            parse_options=arrow.ParseOptions(
                delimiter=separator,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=skip if skip_broken else None,
            ),
            convert_options=arrow.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except (pa.ArrowException, csv.Error) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{file} cannot be read as CSV with a header line ({reason}); check dataset.separator, and that all lines"
            " have as many columns"
        ) from error
    columns = [table[name].slice(1) for name in names]
    if not quoted:
        import pyarrow.compute as pc

        columns = [pc.replace_substring(column, CARRIAGE_RETURN, "\r") for column in columns]
    return [name.replace(CARRIAGE_RETURN, "\r") for name in header], columns, broken


def parse_column(
    cells: pa.ChunkedArray, decimal: str, where: str, name: str, *, words: bool = False, mixed: bool = False
) -> Column:
    """A column of numbers, of true and false, or of words.

    Empty cells are missing, and so are NA, NaN, null and the like where the other cells are numbers; among words they
    are words.

    Args:
        cells: as they are written [N].
        decimal: the mark before a number's fraction.
        where, name: the file and the column, for messages.
        words: take it for words, whatever is in it.
        mixed: take a column that is not of numbers alone for words.

    Raises:
        DataError: most cells look like numbers, and one is none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as arrow

    cells = pc.utf8_trim_whitespace(cells)
    empty = _mask(pc.equal(cells, ""))
    if not words:
        nulls = _mask(pc.is_in(cells, pa.array(arrow.ConvertOptions().null_values)))
        mark = re.escape(decimal)
        fraction = rf"(?:\d+(?:{mark}\d*)?|{mark}\d+)"
        number = _mask(pc.match_substring_regex(cells, rf"^[+-]?(?:{fraction}(?:[eE][+-]?\d+)?|(?i:inf|infinity))$"))
        if (number | nulls).all():
            return _numbers(cells, nulls, decimal)
        alike = number | _mask(pc.match_substring_regex(cells, LIKE_NUMBER)) & ~_mask(
            pc.match_substring_regex(cells, ORDINAL)
        )
        numbers, others = (len(cells.filter(pa.array(rows)).unique()) for rows in (alike, ~alike & ~nulls))
        most = 2 * (alike & ~nulls).sum() > (~nulls).sum()
        if not mixed and (most or (others <= MOST_WORDS and numbers >= FEWEST_NUMBERS * others)):
            row = int(np.flatnonzero(~nulls & ~number)[0])
            cell, share = cells[row].as_py(), "most" if most else "many"
            raise DataError(
                f"{where}, row {row + 1} below the header, column {name}: {cell!r} is no number, while {share} cells of"
                f" the column look like numbers; {_fix(cell, decimal)}. If they are categories, set"
                f" dataset.categories=[{name}]"
            )
        if (_mask(pc.is_in(pc.utf8_lower(cells), pa.array(["true", "false"]))) | nulls).all():
            return Column(_mask(pc.equal(pc.utf8_lower(cells), "true")), nulls)
    dates = _mask(pc.match_substring_regex(cells, DATE))
    return Column(cells.to_numpy().astype(object), empty, bool(2 * dates.sum() > (~empty).sum()))


def _mask(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(values, dtype=bool)


def _numbers(cells: pa.ChunkedArray, missing: np.ndarray, decimal: str) -> Column:
    """Numbers float64, or int64 where all are whole; 0 where missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    filled = pc.if_else(pa.array(missing), "0", pc.replace_substring(cells, decimal, "."))
    plain = pc.replace_substring_regex(filled, r"^\+", "")
    whole = _mask(pc.match_substring_regex(plain, r"^-?\d{1,18}$")).all()
    return Column(np.asarray(plain.cast(pa.int64() if whole else pa.float64())), missing)


def _fix(cell: str, decimal: str) -> str:
    """What to do about a cell that is no number."""
    other = DECIMALS[1 - DECIMALS.index(decimal)]
    if re.fullmatch(rf"[+-]?\d{{1,3}}(\{other}\d{{3}})+", cell):
        return f"take out the thousands separators, or set dataset.decimal='{other}' if it is the decimal mark"
    if re.fullmatch(rf"[+-]?\d*\{other}\d+", cell):
        return f"set dataset.decimal='{other}'"
    if re.search(r"\d", cell):
        return "write the numbers alone, without units and thousands separators"
    return "write numbers only, and nothing where there is none (with dataset.missing=drop)"


def check_named(names: list[str], where: str) -> None:
    """Raise `DataError` for columns without a name."""
    unnamed = [place + 1 for place, name in enumerate(names) if not name]
    if unnamed:
        raise DataError(
            f"{where}: column {', '.join(map(str, unnamed[:6]))} of {len(names)} has no name; name each in the first"
            " line, or write the file without it (pandas: to_csv(…, index=False))"
        )


def check_header(names: list[str], columns: list[Column], where: str) -> None:
    """Raise `DataError` for a header that looks like one more row, or names two columns alike."""
    if _is_data(names, columns):
        raise DataError(
            f"{where} seems to have no header line: its first line is {', '.join(names[:6])}, like the lines below;"
            " put a line with the columns' names first"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{where}: {names.count(twice[0])} columns are called {twice[0]}; give each column its own name"
        )


def _is_data(names: list[str], columns: list[Column]) -> bool:
    """Whether a header looks like one more row: numbers over numbers, values over words.

    Numbers may be names where they count: 0, 1, 2, … as of an array, years, wavelengths.
    """
    over_numbers = [name for name, column in zip(names, columns, strict=True) if not column.is_words]
    over_words = [column for column in columns if column.is_words]
    repeated = [name in set(column.values) for name, column in zip(names, columns, strict=True) if column.is_words]
    if not over_numbers:
        return all(repeated)
    over_numbers = [name for name in over_numbers if name.lower() not in NO_NUMBER] or over_numbers
    try:
        numbers = [float(name.replace(",", ".")) for name in over_numbers]
    except ValueError:
        return False
    steps = np.diff(numbers)
    counting = bool((steps > 0).all()) and all(number.is_integer() for number in numbers)
    if not counting:
        return True
    return any(repeated) if over_words else not (len(numbers) > 2 and len(set(steps)) == 1)
