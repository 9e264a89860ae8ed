import inspect

from quire_engine import errors


def test_the_docstring_draws_the_whole_tree():
    tree = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.EngineError)
    }
    assert errors.__doc__ is not None
    assert {name for name in tree if name not in errors.__doc__} == set()


def test_exit_codes_are_what_the_operator_reads():
    assert errors.ModelCorrupt.exit_code == 65
    assert errors.ModelMissing.exit_code == 66
    assert errors.NoDevice.exit_code == 69
    assert errors.CoreDied.exit_code == 70
    assert errors.ModelUnsupported.exit_code == errors.ConfigError.exit_code == 2
    assert errors.AdapterUnusable.exit_code == 2, "not one that starts a repair"
    assert errors.FetchFailed.exit_code == 10
