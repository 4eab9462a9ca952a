"""Fine-tuning by Tidemill's own loop beside TRL's SFTTrainer with PEFT, and Tidemill's methods beside each other."""
