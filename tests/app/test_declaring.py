"""Declaring functions and jobs: what is accepted, and what is refused where it is written."""

from typing import Any

import pytest

from headrace import App, Csv, Http, Items, RetryPolicy, Schedule, Upload, all_results
from headrace.runtime.errors import InvalidFunction
from headrace.runtime.model.spec import FunctionSpec


def declared(app: App) -> dict[str, FunctionSpec]:
    return {name: item.spec for name, item in app.declared.items()}


def test_decorators_return_the_function_unchanged() -> None:
    app = App("shop")

    def plain(event: Any) -> Any:
        return event

    def chunked(chunk: Any, context: Any) -> int:
        return 1

    assert app.function(plain) is plain
    assert app.function(name="other", timeout=3)(plain) is plain
    assert app.on(Upload("inbox"))(app.job(split=Csv())(chunked)) is chunked
    assert app.on(Schedule("rate(5 minutes)"))(app.on(Http("GET", "/x"))(plain)) is plain
    assert plain(3) == 3
    assert set(app.declared) == {"shop.plain", "shop.other", "shop.chunked"}


def test_settings_become_a_spec_in_seconds_and_bytes() -> None:
    app = App("shop")

    @app.function(
        timeout=5,
        memory="128 MiB",
        retries=0,
        max_age=60,
        reserved_concurrency=0,
        weight=7,
        priority=-3,
        on_failure="shop.a",
        on_success="b.c",
    )
    def f(event: Any) -> int:
        """Says what it does.

        At length.
        """
        return 1

    spec = declared(app)["shop.f"]
    assert (spec.timeout_s, spec.memory_bytes, spec.max_age_s) == (5.0, 128 << 20, 60.0)
    assert (spec.retry.retries, spec.retry.attempts_max) == (0, 1)
    assert (spec.reserved_concurrency, spec.weight, spec.priority) == (0, 7, -3)
    assert (spec.on_failure, spec.on_success) == ("shop.a", "b.c")
    assert spec.doc.startswith("Says what it does.")
    assert spec.file == __file__
    assert spec.line > 0
    assert spec.output_schema == {"type": "integer"}


def test_without_settings_the_defaults_of_the_design_hold() -> None:
    app = App("shop")
    app.function(lambda_ := _named("f"))
    spec = declared(app)["shop.f"]
    assert lambda_ is not None
    assert (spec.timeout_s, spec.memory_bytes, spec.retry.retries, spec.max_age_s) == (
        60.0,
        512 << 20,
        2,
        6 * 3600.0,
    )
    assert (spec.retry.base_s, spec.retry.max_s) == (1.0, 300.0)


def _named(name: str) -> Any:
    def f(event: Any) -> None: ...

    f.__name__ = name
    return f


def test_a_retry_policy_is_taken_as_it_is() -> None:
    app, policy = App("shop"), RetryPolicy(retries=9, base_s=0.5, max_s=2.0)
    app.function(retries=policy)(_named("f"))
    assert declared(app)["shop.f"].retry == policy


@pytest.mark.parametrize("name", ["", "1a", "a b", "a.b", "ä", "a" * 64, "-a", None, 3])
def test_an_apps_name_is_checked(name: Any) -> None:
    with pytest.raises(InvalidFunction, match="not a valid name"):
        App(name)


def test_an_apps_way_to_start_workers_is_checked() -> None:
    assert App("a", start="spawn").start == "spawn"
    with pytest.raises(InvalidFunction, match="start is 'thread'"):
        App("a", start="thread")


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"timeuot": 3}, "no setting 'timeuot'", "Did you mean timeout?"),
        ({"retry": 3}, "no setting 'retry'", "Did you mean retries?"),
        ({"xyz": 3}, "no setting 'xyz'", "Known: timeout"),
        ({"timeout": 0}, "timeout is 0", "0.001 to 86400"),
        ({"timeout": "5"}, "timeout is '5'", "a number"),
        ({"timeout": True}, "timeout is True", "a number"),
        ({"timeout": float("nan")}, "timeout is nan", "a number"),
        ({"memory": "much"}, "memory is 'much'", "4 MiB"),
        ({"memory": "10 KiB"}, "memory is '10 KiB'", "at least 1 MiB"),
        ({"memory": None}, "memory is None", "4 MiB"),
        ({"retries": -1}, "retries is -1", "0 to 1000"),
        ({"retries": 1.5}, "retries is 1.5", "a whole number"),
        ({"max_age": 0}, "max_age is 0", "1 to"),
        ({"reserved_concurrency": -1}, "reserved_concurrency is -1", "a whole number"),
        ({"weight": 0}, "weight is 0", "1 to 1000"),
        ({"priority": 101}, "priority is 101", "-100 to 100"),
        ({"on_failure": print}, "on_failure is", "APP.NAME"),
        ({"on_success": "ftp://host/x"}, "on_success: nothing is delivered by ftp://", "https://HOST/PATH"),
        ({"on_success": "s3://UPPER/x"}, "on_success: ", "s3://BUCKET/PREFIX"),
        ({"idempotency_ttl": "soon"}, "idempotency_ttl is 'soon'", "24 h"),
        ({"idempotency_ttl": 0.5}, "idempotency_ttl is 0.5", "1 s to 30 days"),
        ({"idempotency_ttl": "31 days"}, "idempotency_ttl is '31 days'", "1 s to 30 days"),
        ({"idempotency_ttl": True}, "idempotency_ttl is True", "24 h"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, Any], message: str, hint: str) -> None:
    app = App("shop")
    with pytest.raises(InvalidFunction) as caught:
        app.function(**settings)(_named("f"))
    assert message in str(caught.value)
    assert "shop.f" in str(caught.value)
    assert hint in caught.value.hint
    assert app.declared == {}


def test_a_name_is_taken_once_and_the_error_names_the_place() -> None:
    app = App("shop")
    app.function(_named("f"))
    with pytest.raises(InvalidFunction, match=rf"shop\.f: the name is taken by {__file__}:\d+"):
        app.function(_named("f"))
    with pytest.raises(InvalidFunction, match="taken"):
        app.job(split=Csv(), name="f")(_named("g"))


@pytest.mark.parametrize("thing", [3, "text", int, None])
def test_only_functions_are_functions(thing: Any) -> None:
    app = App("shop")
    with pytest.raises(InvalidFunction, match="is not a function"):
        app.function()(thing) if thing is not None else app.function(name="x")(thing)


def test_a_lambda_needs_a_name() -> None:
    app = App("shop")
    with pytest.raises(InvalidFunction) as caught:
        app.function(lambda event: event)
    assert "name=" in caught.value.hint
    app.function(name="named")(lambda event: event)
    assert "shop.named" in app.declared


# ---- triggers
# ----------------------------------------------------------------------------------------------------


def test_triggers_stack_in_the_order_they_are_written() -> None:
    app = App("shop")

    @app.on(Upload("inbox", suffix=".csv"))
    @app.on(Http("POST", "/f"))
    @app.function
    def f(event: Any) -> None: ...

    assert [trigger.kind for trigger in declared(app)["shop.f"].triggers] == ["upload", "http"]
    assert declared(app)["shop.f"].triggers[0].fields["suffix"] == ".csv"


def test_a_trigger_on_an_undeclared_function_is_refused() -> None:
    app = App("shop")
    with pytest.raises(InvalidFunction) as caught:
        app.on(Upload("inbox"))(_named("f"))
    assert "is no function of this app" in str(caught.value)
    assert "@app.function" in caught.value.hint
    app.function(_named("f"))
    with pytest.raises(InvalidFunction):
        app.on(Upload("inbox"))(_named("f"))


@pytest.mark.parametrize("thing", [None, "inbox", 3, object()])
def test_what_is_no_trigger_is_refused(thing: Any) -> None:
    with pytest.raises(InvalidFunction, match="is not a trigger"):
        App("shop").on(thing)


def test_a_path_parameter_needs_a_parameter_of_the_function() -> None:
    app = App("shop")

    @app.function
    def rate(product: str) -> None: ...

    @app.function
    def whole(event: Any) -> None: ...

    with pytest.raises(InvalidFunction) as caught:
        app.on(Http("POST", "/reviews/{item}"))(rate)
    assert "'item'" in str(caught.value)
    assert "Add a parameter item" in caught.value.hint
    app.on(Http("POST", "/reviews/{product}"))(rate)
    app.on(Http("POST", "/all/{anything}"))(whole)


# ---- jobs
# --------------------------------------------------------------------------------------------------------


def test_a_jobs_settings_become_its_spec() -> None:
    app = App("shop")

    def add(a: int, b: int) -> int:
        return a + b

    @app.job(
        split=Csv(chunk="1 MiB"),
        reduce=add,
        finish=lambda value: value,
        initial={"n": 0},
        output="results/x",
        max_concurrency=3,
        tolerated_failures=0.25,
        retries=5,
        priority=2,
    )
    def count(chunk: Any, context: Any) -> int:
        return 1

    spec = declared(app)["shop.count"]
    job = spec.job
    assert job is not None
    assert (job.reduce, job.finish, job.initial, job.output) == ("tree", True, {"n": 0}, "results/x")
    assert (job.max_concurrency, job.tolerated_failures) == (3, 0.25)
    assert job.split["kind"] == "csv"
    assert (spec.retry.retries, spec.priority, spec.output_schema) == (5, 2, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "csv"}, "split is 'csv'"),
        ({"split": Csv(), "reduce": 3}, "reduce is 3"),
        ({"split": Csv(), "initial": object()}, "initial is a object"),
        ({"split": Csv(), "max_concurrency": 0}, "max_concurrency is 0"),
        ({"split": Csv(), "tolerated_failures": -1}, "tolerated_failures is -1"),
        ({"split": Csv(), "finish": 3, "reduce": max}, "finish is 3"),
        ({"split": Csv(), "finish": len}, "finish"),
        ({"split": Csv(), "timeuot": 3}, "no setting 'timeuot'"),
    ],
)
def test_a_wrong_job_is_refused(settings: dict[str, Any], message: str) -> None:
    app = App("shop")
    with pytest.raises(InvalidFunction) as caught:
        app.job(**settings)(_named("f"))
    assert message in str(caught.value)


def test_a_jobs_function_takes_a_chunk_and_maybe_the_context() -> None:
    app = App("shop")
    with pytest.raises(InvalidFunction, match="takes the chunk"):
        app.job(split=Items(), name="none")(lambda: None)
    with pytest.raises(InvalidFunction, match="takes \\(chunk\\) or \\(chunk, context\\), not 'other'"):
        app.job(split=Items(), name="more")(lambda chunk, other: None)
    app.job(split=Items(), name="positional", reduce=all_results(list))(lambda piece, /: None)
    job = declared(app)["shop.positional"].job
    assert job is not None
    assert job.reduce == "all"
