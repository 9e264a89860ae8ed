import msgspec
import pytest

from quire_engine.config import EngineConfig, require_built
from quire_engine.errors import ConfigError


def test_a_config_survives_its_way_to_the_core(tmp_path):
    config = EngineConfig(model="/models/model", max_model_len=512, device="cpu")
    path = tmp_path / "config.json"
    path.write_bytes(config.to_json())
    assert EngineConfig.read(path) == config


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"model": ""}, "model must name"),
        ({"max_model_len": 0}, "max_model_len must be >= 1, got 0; raise --max-model-len"),
        ({"max_num_seqs": 0}, "max_num_seqs must be >= 1"),
        ({"kv_cache_memory_bytes": -1}, "kv_cache_memory_bytes must be >= 1, got -1"),
        ({"block_size": 12}, "block_size must be 8, 16 or 32, got 12"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization must be in \(0, 1\], got 1.5"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be >= 1, got 0"),
        ({"max_num_batched_tokens": 16}, r"max_num_batched_tokens must be >= max_num_seqs \(128\)"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(fields, rule):
    with pytest.raises(ConfigError, match=rule):
        EngineConfig(**{"model": "m", **fields})


def test_several_gpus_can_be_planned_and_not_be_served():
    config = EngineConfig(model="m", tensor_parallel_size=2)
    with pytest.raises(ConfigError, match=r"tensor_parallel_size must be 1 .* got 2"):
        require_built(config)
    require_built(EngineConfig(model="m"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"model": "m", "max_modle_len": 5}', "max_modle_len"),
        ('{"model": "m", "dtype": "int3"}', "int3"),
        ('{"model": "m"', "truncated"),
        ('{"model": "m", "max_model_len": 0}', "max_model_len must be >= 1"),
    ],
)
def test_a_bad_file_is_a_config_error(tmp_path, text, complaint):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        EngineConfig.read(path)


def test_a_config_does_not_change():
    with pytest.raises(AttributeError):
        EngineConfig(model="m").model = "other"
    assert msgspec.json.decode(EngineConfig(model="m").to_json())["block_size"] == 16
