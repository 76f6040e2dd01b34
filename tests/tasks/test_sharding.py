import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks.sharding import check_strategy


def test_the_older_fsdp_is_refused_with_one_sentence() -> None:
    with pytest.raises(TerraFMError, match=r"FSDPStrategy flattens parameters.*conf/hardware/fsdp\.yaml"):
        check_strategy(FSDPStrategy())
    check_strategy(ModelParallelStrategy())
    check_strategy(DDPStrategy())
