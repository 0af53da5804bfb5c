// The current version of v86.

import { testInNode } from './v86-node.mjs';

testInNode('v86');
