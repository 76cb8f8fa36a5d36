"""Import of Online Retail I and II: workbooks of one and two sheets, and CSV in the encodings of common copies."""

from __future__ import annotations

import io
import zipfile

import pytest
from support.layouts import Files, Imported, Layouts

from nextitem.core.errors import UserError

HEADER = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]
HEADER_II = ["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country"]
ROWS: list[list[object]] = [
    [536365, "85123A", "WHITE HEART", 6, 40513.351388888892, 2.55, 17850, "United Kingdom"],
    [536365, 71053, " LANTERN ", 6, 40513.351388888892, 3.39, 17850, "United Kingdom"],
    ["C536379", "85123A", "WHITE HEART", -1, 40513.395833333336, 2.55, 17850, "United Kingdom"],
    [536370, "POST", "POSTAGE", 3, 40513.364583333336, 18, 12583, "France"],
    [536371, 71053, "LANTERN", 3, 40513.364583333336, 3.39, None, "France"],
    [536372, 71053, "LANTERN", 3, 40513.364583333336, 3.39, 12583, "France"],
]


def workbook(*sheets: list[list[object]]) -> bytes:
    """Return a minimal .xlsx: shared strings for text, unchanged numbers, no empty cells."""
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    texts: list[str] = []
    files = {}
    for number, rows in enumerate(sheets, start=1):
        lines = []
        for line, row in enumerate(rows, start=1):
            cells = ""
            for letter, value in zip("ABCDEFGH", row, strict=True):
                if isinstance(value, str):
                    texts.append(value)
                    cells += f'<c r="{letter}{line}" t="s"><v>{len(texts) - 1}</v></c>'
                elif value is not None:
                    cells += f'<c r="{letter}{line}"><v>{value}</v></c>'
            lines.append(f'<row r="{line}">{cells}</row>')
        files[f"xl/worksheets/sheet{number}.xml"] = (
            f"<worksheet {space}><sheetData>{''.join(lines)}</sheetData></worksheet>"
        )
    shared = "".join(f"<si><t>{text}</t></si>" for text in texts)
    files["xl/sharedStrings.xml"] = f"<sst {space}>{shared}</sst>"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("is_zip", [True, False])
def test_workbook(imported: Imported, layouts: Layouts, is_zip: bool) -> None:
    files: Files = {"Online Retail.xlsx": workbook([[*HEADER], *ROWS])}
    path = layouts.zip(files) if is_zip else layouts.folder(files) / "Online Retail.xlsx"
    dataset, messages = imported("online-retail", path)
    log = dataset.interactions
    assert dataset.users.ids.external.to_list() == ["12583", "17850"]
    assert log.columns["action"].to_list() == ["purchase", "purchase", "purchase", "cancel"]
    assert log.positive is not None
    assert int(log.positive.sum()) == 3
    assert log.timestamps is not None
    assert log.timestamps[1] == 1291191960000  # 2010-12-01 08:26
    assert dataset.context == {"quantity": "numeric", "price": "numeric"}
    assert dataset.catalog.titles().to_list() == ["LANTERN", "WHITE HEART"]
    assert dataset.catalog.released_ms is not None
    assert dataset.catalog.released_ms[0] == 1291191960000
    assert dataset.users.table["country"].to_list() == ["France", "United Kingdom"]
    assert dataset.repeats
    assert "left out 1 lines without a customer" in messages
    assert "left out 1 lines that are no product" in messages


def csv_text(header: list[str], dates: list[str], *, customer: str = "17850.0") -> str:
    lines = [f'{536365 + n},85123A,"CAFÉ, HEART",6,{date},2.55,{customer},UK' for n, date in enumerate(dates)]
    return "\n".join([",".join(header), *lines, f"536999,71053,,2,{dates[0]},3.39,12583.0,France"]) + "\n"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("dates", [["12/1/2010 8:26", "12/13/2010 8:26"], ["01/12/2010 08:26", "13/12/2010 08:26"]])
def test_csv(imported: Imported, layouts: Layouts, encoding: str, dates: list[str]) -> None:
    text = csv_text(HEADER, dates).encode(encoding)
    dataset, _ = imported("online-retail", layouts.folder({"data.csv": text}))
    assert dataset.users.ids.external.to_list() == ["12583", "17850"]
    assert dataset.catalog.titles()[1] == "CAFÉ, HEART"
    assert dataset.interactions.timestamps is not None
    assert dataset.interactions.timestamps.tolist() == [1291191960000, 1291191960000, 1292228760000]


def test_lines_in_both_sheets_are_imported_once(imported: Imported, layouts: Layouts) -> None:
    first = [[489434, "85048", "LIGHTS", 12, 40148.32, 6.95, 13085, "UK"], *ROWS[:2]]
    files: Files = {"online_retail_II.xlsx": workbook([[*HEADER_II], *first], [[*HEADER_II], *ROWS])}
    dataset, messages = imported("online-retail-ii", layouts.zip(files))
    assert len(dataset.interactions) == 5
    assert "left out 2 lines of invoices that a later part of the file repeats" in messages


def test_lines_that_occur_twice_in_one_table_are_imported_once(imported: Imported, layouts: Layouts) -> None:
    dates = ["2009-12-01 07:45:00", "2010-12-01 08:26:00", "2010-12-09 20:01:00"]
    text = csv_text(HEADER_II, dates)
    header, *rows = text.splitlines()
    text = "\n".join([header, *rows[:3], *rows[1:3], rows[3].replace("2009", "2011")]) + "\n"
    dataset, messages = imported("online-retail-ii", layouts.folder({"online_retail_II.csv": text}))
    assert len(dataset.interactions) == 4
    assert "left out 2 lines of invoices" in messages


def test_the_importer_of_the_other_data_set_is_named(imported: Imported, layouts: Layouts) -> None:
    files: Files = {"online_retail_II.xlsx": workbook([[*HEADER_II], *ROWS])}
    with pytest.raises(UserError, match="this is online-retail-ii: nextitem import online-retail-ii"):
        imported("online-retail", layouts.zip(files))
    with pytest.raises(UserError, match="has a column invoiceno, and there are a, b"):
        imported("online-retail", layouts.folder({"other.csv": "a,b\n1,2\n"}))


@pytest.mark.parametrize("content", [b"no workbook", workbook([[*HEADER], *ROWS])[:-200], b""])
def test_a_damaged_workbook_is_named(imported: Imported, layouts: Layouts, content: bytes) -> None:
    with pytest.raises(UserError, match=r"Online Retail\.xlsx: (is no Excel workbook|cut off|the file is empty)"):
        imported("online-retail", layouts.folder({"Online Retail.xlsx": content}) / "Online Retail.xlsx")


def test_damage_inside_a_sheet_is_named(imported: Imported, layouts: Layouts) -> None:
    whole = workbook([[*HEADER], *ROWS])
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for damage in (b"<worksheet", parts["xl/worksheets/sheet1.xml"].replace(b"<v>0</v>", b"<v>999</v>")):
        file = layouts.zip({**parts, "xl/worksheets/sheet1.xml": damage}, "Online Retail.xlsx")
        with pytest.raises(UserError, match="is no Excel workbook, or a damaged one"):
            imported("online-retail", file)


def test_a_csv_with_a_quote_that_never_ends_is_named(imported: Imported, layouts: Layouts) -> None:
    text = ",".join(HEADER) + '\n536365,85123A,"' + "x" * 200_000
    with pytest.raises(UserError, match=r"data\.csv: cannot be read as a table"):
        imported("online-retail", layouts.folder({"data.csv": text}))
