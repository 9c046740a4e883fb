"""COCO, nnU-Net, volumes, tables and class folders become checked folders to train on."""
