"""GradAlign in a TRL script; runs on a laptop. New beside stock TRL: two class names, the validation set, one block."""

from datasets import Dataset

from gradalign.policy.where import EMBEDDED
from gradalign.problems.embedded import make_pool
from gradalign.problems.write import trl_row
from gradalign.rewards.countdown import countdown
from gradalign.trainers.trl import GradAlignConfig, GradAlignTrainer

rows = Dataset.from_list([trl_row(problem) for problem in make_pool("mixed", size=576, seed=0)])
args = GradAlignConfig(
    "runs/train_in_python", max_steps=16, learning_rate=5e-5, per_device_train_batch_size=128, num_generations=16,
    max_completion_length=16, logging_steps=4, report_to="none", use_cpu=True, disable_tqdm=True, save_total_limit=1,
    per_device_eval_batch_size=512,
    strategy="gradalign", steps_per_round=4, chunk=128, top=32,
)  # fmt: skip
trainer = GradAlignTrainer(
    model=str(EMBEDDED), reward_funcs=countdown, args=args, train_dataset=rows.select(range(320)),
    eval_dataset=rows.select(range(448, 576)), validation_dataset=rows.select(range(320, 448)),
)  # fmt: skip
trainer.train()
print("mean reward on the test problems:", trainer.evaluate()["eval_reward"])
