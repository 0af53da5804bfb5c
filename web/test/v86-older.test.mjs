// A version of v86 from before it asked disks for cached sectors.

import { testInNode } from './v86-node.mjs';

testInNode('v86-older');
