"""Import of shop logs: Retailrocket, Yoochoose, Diginetica."""

from __future__ import annotations

import pytest
from support.layouts import Files, Imported, Layouts

from nextitem.core.errors import UserError

EVENTS = (
    "timestamp,visitorid,event,itemid,transactionid\n"
    "1433221332117,257597,view,355908,\n1433224214164,992329,addtocart,248676,\n"
    "1433224214999,992329,transaction,248676,4000\n1433224215000,992329,view,318965,\n,992329,view,318965,\n"
)
PROPERTIES: Files = {
    "item_properties_part1.csv": "timestamp,itemid,property,value\n"
    "1435460400000,355908,categoryid,1338\n1435460400000,355908,888,1116713 n277.200\n"
    "1435460400000,355908,available,0\n1435460400000,99,categoryid,1338\n",
    "item_properties_part2.csv": "timestamp,itemid,property,value\n"
    "1431226800000,355908,categoryid,209\n1435460400000,248676,790,n1200.000\n1431226800000,355908,112,679677\n",
    "category_tree.csv": "categoryid,parentid\n209,169\n169,\n1338,209\n",
}


def test_retailrocket(imported: Imported, layouts: Layouts) -> None:
    dataset, messages = imported("retailrocket", layouts.zip({"events.csv": EVENTS, **PROPERTIES}))
    assert (len(dataset.interactions), dataset.repeats) == (4, True)
    assert set(dataset.interactions.columns["action"].to_list()) == {"view", "addtocart", "transaction"}
    assert dataset.interactions.positive is None or bool(dataset.interactions.positive.all())
    items = dataset.catalog.table
    assert items["item_id"].to_list() == ["248676", "318965", "355908"]
    assert items["categories"].to_list() == [None, None, ["169", "209"]], "the earliest category, with its ancestors"
    assert items["properties"].to_list() == ["n1200.000", None, "679677 1116713 n277.200"]
    assert "left out 1 events without visitor, item, time or kind" in messages
    assert "1 properties change over time" in messages
    assert "1 items of the log have no properties" in messages


def test_retailrocket_without_properties(imported: Imported, layouts: Layouts) -> None:
    dataset, messages = imported(
        "retailrocket", layouts.folder({"events.csv": EVENTS.replace("transaction,2", "refund,2")})
    )
    assert dataset.interactions.positive is not None
    assert int(dataset.interactions.positive.sum()) == 3
    assert "events of an unknown kind are context: refund" in messages


def test_another_events_file_is_refused(imported: Imported, layouts: Layouts) -> None:
    with pytest.raises(UserError, match="has no column 'timestamp'; there are event_time, product_id"):
        imported("retailrocket", layouts.folder({"events.csv": "event_time,product_id\n1,2\n"}))


CLICKS = (
    "1,2014-04-07T10:51:09.277Z,214536502,0\n1,2014-04-07T10:54:09.868Z,214536500,S\n"
    "2,2014-04-07T13:56:37.614Z,214536502,7\n2,never,214536502,7\n"
)
BUYS = "1,2014-04-07T11:04:11.417Z,214536500,12462,1\n2,2014-04-07T14:04:11.417Z,214536502,0,0\n"


def test_yoochoose(imported: Imported, layouts: Layouts) -> None:
    files: Files = {"yoochoose-clicks.dat": CLICKS, "yoochoose-buys.dat": BUYS, "yoochoose-test.dat": CLICKS}
    dataset, messages = imported("yoochoose", layouts.zip(files))
    assert dataset.anonymous
    assert dataset.interactions.columns["action"].to_list() == ["click", "click", "buy", "click", "buy"]
    assert dataset.interactions.positive is not None
    assert dataset.interactions.positive.tolist() == [True, True, False, True, False]
    assert dataset.interactions.timestamps is not None
    assert dataset.interactions.timestamps[0] == 1396867869277
    assert dataset.interactions.columns["price"].to_list() == [None, None, 12462.0, None, None]
    assert dataset.context == {"category": "categorical", "price": "numeric", "quantity": "numeric"}
    assert "left out 1 clicks without session, item or time" in messages
    assert "yoochoose-test.dat is left out" in messages
    assert "4 rows were read; the published log has 33,003,944" in messages


def test_the_published_archive_of_yoochoose_must_be_unpacked_first(imported: Imported, layouts: Layouts) -> None:
    archive = layouts.root / "yoochoose-data.7z"
    archive.write_bytes(b"7z\xbc\xaf'\x1c" + bytes(100))
    with pytest.raises(UserError, match=r"unpack it first \(7z x yoochoose-data\.7z\), then give the folder"):
        imported("yoochoose", archive)


VIEWS = (
    "sessionId;userId;itemId;timeframe;eventdate\n"
    "1;NA;81766;526309;2016-05-09\n1;NA;31331;1031018;2016-05-09\n2;7;81766;100;2016-05-10\n2;7;NA;100;2016-05-10\n"
)


@pytest.mark.parametrize("header", ["sessionId;userId;itemId", "session_id;user_id;item_id"])
@pytest.mark.parametrize("separator", [";", ","])
def test_diginetica(imported: Imported, layouts: Layouts, header: str, separator: str) -> None:
    files: Files = {
        "train-item-views.csv": VIEWS.replace("sessionId;userId;itemId", header).replace(";", separator),
        "train-purchases.csv": "sessionId;userId;timeframe;eventdate;ordernumber;itemId\n"
        "1;NA;1100000;2016-05-09;5;31331\n",
        "products.csv": "itemId;pricelog2;product.name.tokens\n81766;10;4875,776,56689\n31331;NA;\n5;1;1\n",
        "product-categories.csv": "itemId;categoryId\n81766;12\n",
        "train-queries.csv": "queryId;sessionId\n",
    }
    dataset, messages = imported("diginetica", layouts.folder(files))
    assert dataset.anonymous
    assert len(dataset.interactions) == 4
    assert dataset.interactions.timestamps is not None
    assert dataset.interactions.timestamps[0] == 1462752000000 + 526309
    assert dataset.interactions.positive is not None
    assert dataset.interactions.positive.tolist() == [True, True, False, True]
    items = dataset.catalog.table
    assert items["item_id"].to_list() == ["31331", "81766"]
    assert items["price_log2"].to_list() == [None, 10.0]
    assert items["category"].to_list() == [None, "12"]
    assert dataset.catalog.text is not None
    assert dataset.catalog.text[1] == "4875 776 56689"
    assert "left out 1 views without session, item or day" in messages
    assert "train-queries.csv: left out" in messages


def test_diginetica_without_other_files_than_views(imported: Imported, layouts: Layouts) -> None:
    dataset, messages = imported("diginetica", layouts.folder({"train-item-views.csv": VIEWS}))
    assert len(dataset.interactions) == 3
    assert "items have no features" in messages
