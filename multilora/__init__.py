"""MultiLoRA and its relatives as methods of Hugging Face PEFT.

Importing this package registers them: afterwards `peft.get_peft_model`, `PeftModel.from_pretrained`
and the rest of PEFT know them as they know LoRA.
"""

import peft.mapping

from multilora.config import MethodType, MultiLoraConfig
from multilora.experts import ExpertBank
from multilora.tuner import MultiLoraModel

__all__ = ["ExpertBank", "MethodType", "MultiLoraConfig", "MultiLoraModel"]

# peft.utils.register_peft_method takes members of PEFT's own enum only, so its tables are filled
# here. They are not public API: hence the narrow range of PEFT versions, and a test.
for _type, _config, _model in [(MethodType.MULTILORA, MultiLoraConfig, MultiLoraModel)]:
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[_type] = _config
    peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[_type] = _model
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[_type] = _model.prefix
