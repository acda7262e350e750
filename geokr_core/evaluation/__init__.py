"""The step `evaluation`: backbones judged on labelled sets by fixed protocols, with few labels.

Values that all parts share are in ``cells``; ``sets`` reads labelled files, ``protocols`` holds probe and fine-tuning,
``tasks`` what each kind of task does with them. Not here: pages (``report``) and promotion (``registry``).
"""
