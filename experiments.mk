# The experiments by one word each; thin calls of python -m bayeslora.…, further settings in ARGS="trainer=gpu seed=1".
#   DATA=FOLDER      with cifar10/, cifar100/ and mrpc/ in it; without it the data are downloaded
#   ROBERTA=NAME     a folder or a model of the hub; roberta-base
#   SMOKE=1          a few steps in place of hours, on a CPU; on made-up data and a tiny RoBERTa unless DATA, ROBERTA are given
# A run lies in outputs/NAME/make (with SMOKE: outputs/smoke/NAME); a command repeated goes on there.
OUT ?= outputs
SMOKE ?=
FORCE ?=
DATA ?= $(if $(SMOKE),$(SYNTHETIC))
ROBERTA ?= $(if $(SMOKE),$(SYNTHETIC)/roberta)
ARGS ?=

SYNTHETIC := $(OUT)/synthetic
NEEDS = $(RUN_READY) $(if $(SMOKE),$(SYNTHETIC)/.written)
RUN_READY ?= $(VENV)/.installed

# experiment by the name of its target
EXPERIMENT_cifar10-resnet18-sgld := cifar10_resnet18_sgld
EXPERIMENT_cifar100-wrn2810-sgld := cifar100_wrn_sgld
EXPERIMENT_cifar100-wrn2810-sam-sgld := cifar100_wrn_samsgld
EXPERIMENT_cifar100-wrn2810-sam-sgld-r1 := cifar100_wrn_samsgld_r1
EXPERIMENT_mrpc-lora := mrpc_roberta_sgld
CIFAR := cifar10-resnet18-sgld cifar100-wrn2810-sgld cifar100-wrn2810-sam-sgld cifar100-wrn2810-sam-sgld-r1

run_dir = $(OUT)/$(if $(SMOKE),smoke/$(EXPERIMENT_$(1)),$(EXPERIMENT_$(1))/make)
set = $(firstword $(subst -, ,$(1)))
data = $(if $(DATA),dataset.path=$(DATA)/$(call set,$(1)))
model = $(if $(and $(filter mrpc-%,$(1)),$(ROBERTA)),model.name_or_path=$(ROBERTA))
smoke = $(if $(SMOKE),size=smoke trainer=cpu $(if $(filter cifar100-%,$(1)),chain.num_draws=2))
train = $(RUN) -m bayeslora.train $(strip experiment=$(EXPERIMENT_$(1)) $(data) $(model) $(smoke) run_dir=$(run_dir)) $(ARGS)
evaluate = $(RUN) -m bayeslora.evaluate run_dir=$(run_dir)

.PHONY: $(CIFAR:%=experiment-%) $(CIFAR:%=eval-%) experiments-cifar eval-cifar train-mrpc-lora eval-mrpc-lora \
	experiment-mrpc-lora experiments-all eval-all clean-cifar clean-all

experiment-cifar10-resnet18-sgld: $(NEEDS)  ## CIFAR-10, ResNet-18, SGLD: sample and evaluate
experiment-cifar100-wrn2810-sgld: $(NEEDS)  ## CIFAR-100, WideResNet-28-10, SGLD
experiment-cifar100-wrn2810-sam-sgld: $(NEEDS)  ## the same, SAM-SGLD
experiment-cifar100-wrn2810-sam-sgld-r1: $(NEEDS)  ## the same, SAM-SGLD with a rank-one preconditioner
$(CIFAR:%=experiment-%): experiment-%:
	$(call train,$*)

eval-cifar10-resnet18-sgld:  ## evaluate that run again (so for each: eval-…)
eval-cifar100-wrn2810-sgld:
eval-cifar100-wrn2810-sam-sgld:
eval-cifar100-wrn2810-sam-sgld-r1:
$(CIFAR:%=eval-%): eval-%: $(RUN_READY)
	$(call evaluate,$*)

train-mrpc-lora: $(NEEDS)  ## MRPC, RoBERTa with LoRA: sample and evaluate
	$(call train,mrpc-lora)

eval-mrpc-lora: $(RUN_READY)  ## evaluate that run again
	$(call evaluate,mrpc-lora)

experiment-mrpc-lora: train-mrpc-lora  ## the same as train-mrpc-lora, which evaluates what it sampled

experiments-cifar: $(CIFAR:%=experiment-%)  ## the four of CIFAR
experiments-all: experiments-cifar experiment-mrpc-lora  ## all of them; SMOKE=1 make experiments-all tries each on a CPU
eval-cifar: $(CIFAR:%=eval-%)  ## evaluate the four of CIFAR again
eval-all: eval-cifar eval-mrpc-lora  ## evaluate all of them again

$(SYNTHETIC)/.written: $(RUN_READY)
	$(RUN) -m bayeslora.datasets.synthetic $(SYNTHETIC)
	@touch $@

# $(call remove,WHAT,FOLDERS): asks first; without a terminal to ask, FORCE=1 must say so
remove = @$(if $(FORCE),,printf 'remove $(1) (%s)? [y/N] ' "$(2)"; read answer || true; \
	expr "$$answer" : '[yY]' >/dev/null || { echo "nothing is removed (FORCE=1 asks no more)"; exit 1; };) rm -rf $(2)

clean-cifar:  ## remove the runs of CIFAR, after asking (FORCE=1: at once)
	$(call remove,the runs of CIFAR,$(OUT)/cifar10* $(OUT)/cifar100* $(OUT)/smoke/cifar10*)

clean-all:  ## remove all runs, made-up data and .venv, after asking (FORCE=1: at once)
	$(call remove,all runs and .venv,$(filter-out $(OUT)/README.md,$(wildcard $(OUT)/*)) $(VENV) $(CACHES))
