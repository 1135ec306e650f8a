"""Files in, files out: the rewards of the model, everything else unchanged, and interrupted runs that go on."""

import csv
import datetime
import gzip
import json
import logging
import math
import random

import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from model_builders import conversation_rows
from plaudit import ConfigError, DataError, RewardModel
from plaudit.data.report import Flag
from plaudit.inference.files import WorkFolder, score_file, score_in_chunks
from plaudit.inference.io import rows_in_memory
from plaudit.inference.select import Bounds, best_of_n_file, filter_file
from tolerances import REWARD


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(folder):
    return RewardModel.from_pretrained(folder, device="cpu")


def singles(count=11):
    return [{"id": n, "prompt": "2+2=", "response": f"{n} é" + "x" * (n % 5), "note": None} for n in range(count)]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def lines(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def close(values, expected):
    assert values == REWARD.approx(expected)


# --- values and formats ---------------------------------------------------------------------------------------


def test_rows_of_every_shape_get_the_rewards_of_the_model(model, tmp_path):
    rows = [
        {"z": 1, "prompt": "2+2=", "response": "4", "a": 2**70},
        {"responses": ["4", "5", "6"], "prompt": "2+2=", "nested": {"deep": [1, 1.0, None, {"é": "\ud800"}]}},
        {"prompt": "2+2=", "chosen": "4", "rejected": "5", "margin": 1},
        {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "function"}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    result = score_file(model, path, tmp_path / "out.jsonl")
    out = lines(tmp_path / "out.jsonl")
    one, several, pair, talk = model.score(rows)
    close(out[0]["reward"], one)
    close(out[1]["reward"], several)
    close([out[2]["chosen_reward"], out[2]["rejected_reward"]], list(pair))
    close(out[3]["reward"], talk)
    for row, kept in zip(rows, out, strict=True):
        assert list(kept)[: len(row)] == list(row)
        assert json.dumps({name: kept[name] for name in row}) == json.dumps(row)  # ints stay ints
    assert (result.rows, result.responses, result.unscored, result.resumed) == (4, 7, 0, 0)
    assert set(result.columns) == {"reward", "chosen_reward", "rejected_reward"}
    assert sorted(one.name for one in tmp_path.glob("*")) == ["out.jsonl", "rows.jsonl"]


@pytest.mark.parametrize("source", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "csv.gz", "parquet", "saved", "folder"])
@pytest.mark.parametrize("target", ["jsonl", "jsonl.gz", "csv", "tsv.gz", "parquet"])
def test_every_format_into_every_format(model, tmp_path, source, target):
    rows = singles()
    path = tmp_path / f"in.{source}"
    if source.startswith("json"):
        text = json.dumps(rows) if source == "json" else "\n".join(map(json.dumps, rows))
        path.write_bytes(gzip.compress(text.encode()) if source.endswith(".gz") else text.encode())
    elif "sv" in source:
        opener = gzip.open if source.endswith(".gz") else open
        with opener(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if source == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif source == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif source == "saved":
        Dataset.from_list(rows).save_to_disk(path)
    else:
        path.mkdir()
        write(path / "a.jsonl", rows[:6])
        write(path / "b.jsonl", rows[6:])
    out = tmp_path / f"out.{target}"
    score_file(model, path, out, chunk_size=4)
    if target == "parquet":
        found = pq.read_table(out).to_pylist()
        assert list(Dataset.from_parquet(str(out)).features) == [*rows[0], "reward"]
    elif "sv" in target:
        opener = gzip.open if target.endswith(".gz") else open
        with opener(out, "rt", encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file, delimiter="\t" if target.startswith("tsv") else ","))
    else:
        found = lines(out)
    close([float(row.pop("reward")) for row in found], model.score(rows))
    text = "sv" in source or "sv" in target
    assert found == ([{name: "" if v is None else str(v) for name, v in row.items()} for row in rows] if text else rows)


def test_parquet_keeps_its_types(model, tmp_path):
    fields = {
        "response": pa.large_string(),
        "small": pa.int8(),
        "time": pa.timestamp("us"),
        "word": pa.dictionary(pa.int8(), pa.string()),
        "map": pa.map_(pa.string(), pa.int32()),
        "data": pa.binary(),
        "nested": pa.struct([("x", pa.list_(pa.int16()))]),
    }
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5)
    row = {"response": "4", "small": 3, "time": moment, "word": "w", "map": [("a", 1)], "data": b"\xff"}
    table = pa.Table.from_pylist([{**row, "nested": {"x": [1, None]}}, {"response": "5"}], pa.schema(fields.items()))
    pq.write_table(table, tmp_path / "in.parquet")
    score_file(model, tmp_path / "in.parquet", tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(table.column_names).equals(table)
    assert out.schema.field("reward").type == pa.float64()
    with pytest.raises(DataError, match="bytes"):
        score_file(model, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_values_of_any_kind_in_one_json_column_reach_parquet(model, tmp_path):
    rows = [{"responses": ["a", "b"], "any": {"x": [1, {"y": None}]}}, {"responses": ["c"], "any": "text"}]
    score_file(model, write(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet")
    out = list(Dataset.from_parquet(str(tmp_path / "out.parquet")))
    assert [row["any"] for row in out] == [row["any"] for row in rows]
    for row, expected in zip(out, model.score(rows), strict=True):
        close(row["reward"], expected)


def test_conversations_in_csv(model, tmp_path):
    rows = conversation_rows(5)
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(rows[0]), *([json.dumps(v) for v in row.values()] for row in rows)])
    score_file(model, tmp_path / "in.csv", tmp_path / "out.csv")
    score_file(model, tmp_path / "in.csv", tmp_path / "out.jsonl")
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for row, text, (chosen, rejected) in zip(rows, found, model.score(rows), strict=True):
        assert text["prompt"] == json.dumps(row["prompt"])
        close([float(text["chosen_reward"]), float(text["rejected_reward"])], [chosen, rejected])


# --- columns and faults ---------------------------------------------------------------------------------------


def test_columns_are_named_and_not_overwritten_unasked(model, tmp_path):
    path = write(tmp_path / "in.jsonl", [{"reward": "mine", "response": "4", "b": 1}])
    with pytest.raises(DataError) as caught:
        score_file(model, path, tmp_path / "out.jsonl")
    assert (caught.value.row, caught.value.field) == (0, "reward")
    assert not (tmp_path / "out.jsonl.chunks").exists()
    score_file(model, path, tmp_path / "named.jsonl", column="quality")
    assert list(lines(tmp_path / "named.jsonl")[0]) == ["reward", "response", "b", "quality"]
    score_file(model, path, tmp_path / "over.jsonl", overwrite_column=True)
    row = lines(tmp_path / "over.jsonl")[0]
    assert list(row) == ["reward", "response", "b"]
    close(row["reward"], model.score({"response": "4"}))


@pytest.mark.parametrize("target", ["jsonl", "parquet", "csv"])
def test_rows_that_cannot_be_scored(model, tmp_path, target, caplog):
    rows = [{"chosen": "a", "rejected": "b"} for _ in range(9)]
    rows[6] = {"chosen": "a", "rejected": None}
    rows[7] = {"chosen": None, "rejected": None}
    path, out = write(tmp_path / "in.jsonl", rows), tmp_path / f"out.{target}"
    out.write_text("before")
    with pytest.raises(DataError) as caught:
        score_file(model, path, out, chunk_size=4, overwrite=True)
    assert (caught.value.row, caught.value.field) == (6, "rejected")
    assert out.read_text() == "before"
    with caplog.at_level(logging.WARNING, "plaudit"):
        result = score_file(model, path, out, chunk_size=4, overwrite=True, errors="nan")
    assert (result.unscored, result.resumed, result.columns) == (2, 4, ("chosen_reward", "rejected_reward"))
    assert "9 rows read, 7 scored; not scored: 2 that cannot be read (rows 6, 7;" in caplog.text
    if target == "jsonl":
        assert lines(out)[7] == {**rows[7], "chosen_reward": None, "rejected_reward": None}
    if target == "parquet":
        assert pq.read_table(out)["chosen_reward"].null_count == 2


def test_rows_that_are_too_long(folder, tmp_path, caplog):
    path = write(tmp_path / "in.jsonl", [{"response": "a"}, {"response": "a" * 100}])
    load = {"device": "cpu", "max_length": 20}
    with pytest.raises(DataError, match="101 tokens") as caught:
        score_file(RewardModel.from_pretrained(folder, **load), path, tmp_path / "out.jsonl", chunk_size=1)
    assert (caught.value.row, caught.value.field) == (1, "response")
    cutting = RewardModel.from_pretrained(folder, overlong="truncate_left", **load)
    with caplog.at_level(logging.WARNING, "plaudit"):
        result = score_file(cutting, path, tmp_path / "out.jsonl", chunk_size=1)
    assert (result.truncated, result.resumed) == (1, 1)  # a finished chunk had nothing to truncate
    assert "1 over-long, truncated on the left (> 20 tokens; row 1)" in caplog.text


def test_what_cannot_work_is_refused_with_a_way_out(model, tmp_path):
    path = write(tmp_path / "in.jsonl", singles(3))
    for out in ("out.txt", "out.json", "none/out.jsonl", "in.jsonl"):
        with pytest.raises(ConfigError, match=out.rpartition("/")[2]) as caught:
            score_file(model, path, tmp_path / out)
        assert caught.value.fix
    mixed = write(tmp_path / "mixed.jsonl", [{"response": "a"}, {"responses": ["a"]}])
    with pytest.raises(ConfigError, match="`reward`"):
        score_file(model, mixed, tmp_path / "out.parquet")
    with pytest.raises(DataError, match=r"none\.jsonl"):
        score_file(model, write(tmp_path / "none.jsonl", []), tmp_path / "out.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"response": "a"}\n{"resp')
    with pytest.raises(DataError, match="line 2"):
        score_file(model, broken, tmp_path / "out.jsonl")


# --- going on -------------------------------------------------------------------------------------------------


class Power(Exception):
    """Fails in the middle of a run."""


@pytest.mark.parametrize("target", ["jsonl", "parquet"])
def test_a_run_that_stops_at_any_chunk_resumes_there(model, tmp_path, monkeypatch, target):
    path = write(tmp_path / "in.jsonl", singles())
    score_file(model, path, tmp_path / f"whole.{target}", chunk_size=2)
    out = tmp_path / f"out.{target}"
    write_chunk, computed = WorkFolder.write, []

    def failing(work, index, rows):
        if index == len(computed):
            computed.append(index)
            raise Power
        raise AssertionError("a finished chunk is computed again")

    for stop in range(6):
        with monkeypatch.context() as patch:
            patch.setattr(WorkFolder, "write", failing)
            with pytest.raises(Power):
                score_file(model, path, out, chunk_size=2)
        assert not out.exists()

        def once(work, index, rows, stop=stop):
            if index > stop:
                raise Power
            assert index == stop
            write_chunk(work, index, rows)

        with monkeypatch.context() as patch:
            patch.setattr(WorkFolder, "write", once)
            if stop < 5:
                with pytest.raises(Power):
                    score_file(model, path, out, chunk_size=2)
            else:
                result = score_file(model, path, out, chunk_size=2)
    assert result.resumed == 10
    assert out.read_bytes() == (tmp_path / f"whole.{target}").read_bytes()
    assert not (tmp_path / f"out.{target}.chunks").exists()


@pytest.mark.parametrize("step", ["result.json", "rename", "remove"])
def test_a_run_that_stops_while_it_writes_the_result(model, tmp_path, monkeypatch, step):
    path, out = write(tmp_path / "in.jsonl", singles()), tmp_path / "out.jsonl"

    def stop(*args, **kwargs):
        raise Power

    with monkeypatch.context() as patch:
        if step == "remove":
            patch.setattr(WorkFolder, "remove", stop)
        else:
            patch.setattr(f"plaudit.inference.files.{'rename' if step == 'rename' else 'write_atomically'}", stop)
        with pytest.raises(Power):
            score_file(model, path, out, chunk_size=2)
    assert out.exists() == (step == "remove")
    result = score_file(model, path, out, chunk_size=2)
    assert result.rows == len(lines(out)) == 11
    assert not (tmp_path / "out.jsonl.chunks").exists()
    with pytest.raises(ConfigError, match=r"out\.jsonl"):
        score_file(model, path, out, chunk_size=2)


def stopped(model, path, out, monkeypatch):
    """Finish the first chunk only."""
    write_chunk = WorkFolder.write

    def first(work, index, rows):
        if index:
            raise Power
        write_chunk(work, index, rows)

    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "write", first)
        with pytest.raises(Power):
            score_file(model, path, out, chunk_size=2)


def test_what_changed_since_is_named_and_restart_starts_over(model, folder, tmp_path, monkeypatch):
    path, out = write(tmp_path / "in.jsonl", singles()), tmp_path / "out.jsonl"
    stopped(model, path, out, monkeypatch)
    trained, template = (RewardModel.from_pretrained(folder, device="cpu") for _ in range(2))
    trained.model.score.weight[0, 0] += 0.01
    template.processing_class.chat_template += " "
    for other, message in (
        (trained, "weights changed"),
        (template, "chat template changed"),
        (RewardModel.from_pretrained(folder, device="cpu", max_length=50), r"`max_length` \(512, now 50\) changed"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            score_file(other, path, out, chunk_size=2)
        assert "--restart" in caught.value.fix
        assert "1 finished chunks" in caught.value.fix
    with pytest.raises(ConfigError, match=r"`chunk_size` \(2, now 3\)"):
        score_file(model, path, out, chunk_size=3)
    write(path, [*singles(10), {"response": "other"}])
    with pytest.raises(ConfigError, match="the input changed"):
        score_file(model, path, out, chunk_size=2)
    assert score_file(model, path, out, chunk_size=2, restart=True).resumed == 0
    close(lines(out)[-1]["reward"], model.score({"response": "other"}))


# --- chunks in memory -----------------------------------------------------------------------------------------


def test_rows_in_memory_are_scored_in_chunks_and_resumed(folder, model, tmp_path, monkeypatch):
    rows = [*singles(5), {"chosen": "a", "rejected": None}, {"responses": ["a", "b" * 60]}, *singles(2)]
    short = RewardModel.from_pretrained(folder, device="cpu", max_length=40, overlong="truncate_left")
    whole = list(score_in_chunks(short, rows_in_memory(rows, "rows"), errors="nan", chunk_size=2))
    assert [row.index for row in whole] == list(range(9))
    assert [row.shape for row in whole[4:7]] == ["one", "pair", "list"]
    close(whole[0].rewards, [model.score(rows[0])])
    assert (whole[5].error.row, whole[5].error.field) == (5, "rejected")
    assert all(map(math.isnan, whole[5].rewards))
    assert whole[6].flags == Flag.OVERLONG

    def power_fails(work, index, rows, write=WorkFolder.write):
        if index == 3:
            raise Power
        write(work, index, rows)

    def resume(rows=rows, model=short, **settings):
        return list(score_in_chunks(model, rows_in_memory(rows, "rows"), tmp_path / "chunks", chunk_size=2, **settings))

    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "write", power_fails)
        with pytest.raises(Power):
            resume(errors="nan")
    assert len(list((tmp_path / "chunks").glob("chunk-*"))) == 3
    with pytest.raises(ConfigError, match="the input changed"):
        resume([*rows[:-1], {"response": "other"}])
    with pytest.raises(ConfigError, match="`max_length`"):
        resume(model=model)
    again = resume(errors="nan")
    for row, other in zip(again, whole, strict=True):
        assert repr(row) == repr(other)
    with pytest.raises(DataError) as caught:
        list(score_in_chunks(short, rows_in_memory(rows, "rows"), chunk_size=2))
    assert caught.value.row == 5


# --- choosing -------------------------------------------------------------------------------------------------


def scored_rows():
    rows = [
        {"id": n, "prompt": "p", "responses": [f"{n}{k}" for k in range(4)], "scores": [0.0, 1.0, 2.0, 3.0]}
        for n in range(6)
    ]
    draw = random.Random(0)
    for row in rows:
        row["reward"] = [round(draw.uniform(-1, 1), 3) for _ in range(4)]
    rows[2]["reward"] = None
    rows[3]["reward"] = [0.5, None, 0.5, 0.1]
    return rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_best_of_n_keeps_the_best_response_and_what_goes_with_it(tmp_path, kind):
    rows = scored_rows()
    path = write(tmp_path / "in.jsonl", rows)
    result = best_of_n_file(path, tmp_path / f"out.{kind}")
    assert (result.rows, result.kept, result.unscored, result.kept_responses) == (6, 5, 1, 5)
    expected = []
    for row in rows:
        if row["reward"] is not None:
            best = max(range(4), key=lambda k: -9 if row["reward"][k] is None else row["reward"][k])
            at = {"response": row["responses"][best], "scores": float(best), "reward": row["reward"][best]}
            expected.append({"id": row["id"], "prompt": "p", **at})
    assert expected[2]["response"] == "30"  # of equal ones the first
    if kind == "csv":
        with (tmp_path / "out.csv").open() as file:
            assert list(csv.DictReader(file)) == [{k: str(v) for k, v in row.items()} for row in expected]
        return
    found = lines(tmp_path / "out.jsonl") if kind == "jsonl" else pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert found == expected
    if kind == "parquet":
        assert list(Dataset.from_parquet(str(tmp_path / "out.parquet"))) == expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_best_of_n_keeps_the_best_few_in_order(tmp_path, kind):
    path = write(tmp_path / "in.jsonl", scored_rows())
    result = best_of_n_file(path, tmp_path / f"out.{kind}", top=4)
    found = lines(tmp_path / "out.jsonl") if kind == "jsonl" else pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in found] == [0, 1, 3, 4, 5]
    assert result.short == 1
    for row in found:
        assert row["reward"] == sorted(row["reward"], reverse=True)
        assert [int(text[1]) for text in row["responses"]] == [int(score) for score in row["scores"]]
    assert found[2]["responses"] == ["30", "32", "33"]


def test_best_of_n_names_the_row_that_does_not_fit(tmp_path):
    row = scored_rows()[0]
    for change in ({"reward": [1.0]}, {"reward": "high"}, {"response": "there"}):
        with pytest.raises(DataError) as caught:
            best_of_n_file(write(tmp_path / "in.jsonl", [row, {**row, **change}]), tmp_path / "out.jsonl")
        assert (caught.value.row, caught.value.field) == (1, *change)
        assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


MARGINS = [0.5, -1.0, 2.0, 0.5, 0.0, 0.5, 3.0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        (Bounds(min_margin=0.5), [0, 2, 3, 5, 6]),
        (Bounds(min_margin=0.0, max_margin=2.0), [0, 2, 3, 4, 5]),
        (Bounds(max_reward=0.5), [0, 1, 3, 4, 5]),
        (Bounds(quantile=0.57), [0, 2, 3, 6]),  # 4 of 7, of equal ones the first
        (Bounds(quantile=0.3, keep="lowest"), [1, 4]),
        (Bounds(quantile=0.5, max_margin=1.0, min_reward=0.0), [0, 3]),
        (Bounds(quantile=0.01), []),
    ],
)
def test_pairs_are_kept_by_margin_reward_and_quantile(tmp_path, kind, bounds, kept):
    rows = [{"n": n, "chosen_reward": margin, "rejected_reward": 0.0} for n, margin in enumerate(MARGINS)]
    rows.append({"n": 7, "chosen_reward": None, "rejected_reward": 0.0})
    path, out, rest = write(tmp_path / "in.jsonl", rows), tmp_path / f"out.{kind}", tmp_path / f"rest.{kind}"
    result = filter_file(path, out, bounds, dropped=rest)
    found = []
    for file in (out, rest):
        if kind == "csv":
            with file.open() as text:
                found.append([int(row["n"]) for row in csv.DictReader(text)])
        else:
            read = lines(file) if kind == "jsonl" else pq.read_table(file).to_pylist()
            assert all(row == rows[row["n"]] for row in read)
            found.append([row["n"] for row in read])
    assert found == [kept, [n for n in range(8) if n not in kept]]
    assert (result.rows, result.kept, result.unscored) == (8, len(kept), 1)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_each_of_several_responses_is_kept_or_dropped(tmp_path, kind):
    rows = scored_rows()
    path, out, rest = write(tmp_path / "in.jsonl", rows), tmp_path / f"out.{kind}", tmp_path / f"rest.{kind}"
    result = filter_file(path, out, Bounds(min_reward=0.2), dropped=rest)
    found = [lines(file) if kind == "jsonl" else pq.read_table(file).to_pylist() for file in (out, rest)]
    together = {text for file in found for row in file for text in row["responses"]}
    assert [row["reward"] for row in found[1] if row["id"] == 2] == [None]
    assert sum(len(row["responses"]) for row in found[0]) == result.kept_responses
    assert together == {text for row in rows for text in row["responses"]}
    assert all(one >= 0.2 for row in found[0] for one in row["reward"])
    assert all(one is None or one < 0.2 for row in found[1] for one in row["reward"] or [])


def test_types_of_other_columns_outlive_scoring_and_choosing(model, tmp_path):
    types = {"label": ClassLabel(names=["a", "b"]), "responses": List(Value("large_string"))}
    rows = {"label": [0, 1], "responses": [["4", "5"], ["6", "7"]]}
    Dataset.from_dict(rows, Features(types)).to_parquet(tmp_path / "in.parquet")
    score_file(model, tmp_path / "in.parquet", tmp_path / "scored.parquet")
    best_of_n_file(tmp_path / "scored.parquet", tmp_path / "best.parquet")
    filter_file(tmp_path / "scored.parquet", tmp_path / "kept.parquet", Bounds(quantile=0.5))
    paths = [tmp_path / f"{name}.parquet" for name in ("scored", "best", "kept")]
    scored, best, kept = (Dataset.from_parquet(str(path)) for path in paths)
    number = Value("float64")
    assert scored.features == kept.features == {**types, "reward": List(number)}
    assert best.features == {"label": types["label"], "response": Value("large_string"), "reward": number}


def test_rewards_of_a_type_that_cannot_be_reduced_are_refused(tmp_path):
    rows = [{"responses": ["a", "b"], "reward": [1.0, 0.0]}]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(rows[0]), [json.dumps(value) for value in rows[0].values()]])
    with pytest.raises(ConfigError, match="`reward` holds string") as caught:
        best_of_n_file(tmp_path / "in.csv", tmp_path / "out.parquet")
    assert caught.value.fix
    best_of_n_file(tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert lines(tmp_path / "out.jsonl") == [{"response": "a", "reward": 1.0}]
    alone = write(tmp_path / "in.jsonl", [{"response": "a", "reward": [1.0]}])
    with pytest.raises(DataError) as caught:
        filter_file(alone, tmp_path / "x.csv", Bounds(min_reward=0.0))
    assert (caught.value.row, caught.value.field) == (0, "reward")
    assert caught.value.fix


def test_bounds_that_cannot_work():
    for settings, field in (
        ({}, None),
        ({"min_margin": 1.0, "max_margin": 0.0}, "min_margin"),
        ({"quantile": 20.0}, "quantile"),
        ({"quantile": 0.5, "keep": "best"}, "keep"),
    ):
        with pytest.raises(ConfigError) as caught:
            Bounds(**settings)
        assert caught.value.field == field
        assert caught.value.fix
