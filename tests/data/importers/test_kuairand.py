"""Import of KuaiRand: impressions with all signals, random exposures, clicks as the log, features."""

from __future__ import annotations

import pytest
from support.layouts import Files, Imported, Layouts

from nextitem.core.errors import UserError

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
USERS = (
    "user_id,user_active_degree,follow_user_num,follow_user_num_range,onehot_feat0\n"
    '0,full_active,5,"(0,10]",1\n1,UNKNOWN,,0,\n'
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag\n"
    '10,441,NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,989206467,4,"12,65"\n'
    "11,442,AD,,LongImport,1,,720,1280,,,\n99,1,NORMAL,2020-07-08,ShortImport,1,1,1,1,1,1,1\n"
    "10,441,NORMAL,2020-07-09,ShortImport,1,1,1,1,1,1,1\n"
)


def row(user: int, video: int, time: int, *, click: int, rand: int = 0, tab: int = 1, play: int = 900) -> str:
    return f"{user},{video},20220421,400,{time},{click},0,0,0,0,0,{click},{play},1000,0,0,0,{rand},{tab}\n"


def files(version: str = "pure") -> Files:
    start = 1650485801301
    return {
        f"KuaiRand/data/log_standard_4_08_to_4_21_{version}.csv": LOG
        + row(0, 10, start, click=1)
        + row(0, 11, start, click=0)
        + row(1, 10, start + 1, click=1, tab=4),
        f"KuaiRand/data/log_standard_4_22_to_5_08_{version}.csv": LOG + row(1, 12, start + 2, click=1) + "0,11,x\n",
        f"KuaiRand/data/log_random_4_22_to_5_08_{version}.csv": LOG + row(0, 12, start + 3, click=1, rand=1),
        f"KuaiRand/data/user_features_{version}.csv": USERS,
        f"KuaiRand/data/video_features_basic_{version}.csv": VIDEOS,
        f"KuaiRand/data/video_features_statistic_{version}.csv": "video_id,show_cnt\n10,5\n",
        "KuaiRand/load_data.py": "raise SystemExit('code is never run')\n",
    }


@pytest.mark.parametrize(("name", "version"), [("kuairand-pure", "pure"), ("kuairand-1k", "1k")])
def test_impressions_and_clicks(imported: Imported, layouts: Layouts, name: str, version: str) -> None:
    dataset, messages = imported(name, layouts.tar(files(version)))
    impressions = dataset.impressions
    assert impressions is not None
    assert len(impressions.item_ids) == 5
    assert impressions.request_ids.tolist() == [0, 0, 1, 2, 3], "rows of one user at one time were shown together"
    assert impressions.columns["policy"].to_list() == ["standard"] * 4 + ["random"]
    assert impressions.labels[0] == "is_click"
    assert {"long_view", "is_like", "is_hate", "play_time_ms", "is_profile_enter"} <= set(impressions.labels)
    assert impressions.context == {"tab": "categorical"}
    assert not [note for note in dataset.notes if "contains grades" in note], "durations are declared: above 0 is yes"
    assert (len(dataset.interactions), dataset.repeats) == (4, False)
    assert dataset.users.features == {
        "user_active_degree": "categorical",
        "follow_user_num": "numeric",
        "follow_user_num_range": "categorical",
        "onehot_feat0": "categorical",
    }
    assert dataset.users.ids.external.to_list() == ["0", "1"]
    items = dataset.catalog.table
    assert items["item_id"].to_list() == ["10", "11", "12", "99"]
    assert items["tags"].to_list() == [["12", "65"], None, None, ["1"]]
    assert items["video_duration"].to_list() == [17200.0, None, None, 1.0]
    assert dataset.catalog.released_ms is not None
    assert dataset.catalog.released_ms.tolist() == [1594166400000, 0, 0, 1594166400000]
    assert "left out 1 rows of KuaiRand/data/log_standard_4_22_to_5_08_pure.csv".replace("pure", version) in messages
    assert "1 videos that were shown are not described" in messages
    assert "left out 1 further descriptions of a video" in messages
    assert "video_features_statistic is left out" in messages


def test_27k_has_logs_in_several_parts(imported: Imported, layouts: Layouts) -> None:
    parts = {name.replace("21_27k", "21_27k_part1"): content for name, content in files("27k").items()}
    parts["KuaiRand/data/log_standard_4_08_to_4_21_27k_part2.csv"] = LOG + row(1, 11, 1650485899999, click=1)
    dataset, _ = imported("kuairand-27k", layouts.folder(parts))
    assert len(dataset.interactions) == 5


def test_missing_files_are_noted(imported: Imported, layouts: Layouts) -> None:
    remaining_files = {
        name: content for name, content in files().items() if "random" not in name and "video" not in name
    }
    dataset, messages = imported("kuairand-pure", layouts.folder(remaining_files))
    assert dataset.catalog.features == {}
    assert "there are no random exposures" in messages
    assert "videos have no features" in messages


def test_another_version_is_named(imported: Imported, layouts: Layouts) -> None:
    with pytest.raises(UserError, match="it looks like kuairand-1k: nextitem import kuairand-1k"):
        imported("kuairand-pure", layouts.folder(files("1k")))
    broken = {name: str(content).replace("is_click", "click") for name, content in files().items()}
    with pytest.raises(UserError, match="has no column 'is_click'"):
        imported("kuairand-pure", layouts.folder(broken, "broken"))
