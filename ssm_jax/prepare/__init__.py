"""What people have - COCO, nnU-Net, volumes, tables, folders - as a checked folder to train on."""
