// <ox-bitmaps>: the image's persistent bitmaps: records of what changed since a backup.

import type { Bitmap } from 'oxcow';
import { html, LitElement, type TemplateResult } from 'lit';

import { base } from '../styles.js';
import { exact, size } from '../words.js';

const FLAGS: Record<string, string> = {
  auto: 'recording',
  'in-use': 'not saved properly, not to be trusted',
};

export class Bitmaps extends LitElement {
  static override properties = { bitmaps: { attribute: false } };
  declare bitmaps: Bitmap[];

  static override styles = base;

  override render(): TemplateResult {
    return html`<p class="small muted">Records of which parts of the disk have changed, for incremental backups.</p>
      <div class="scroll" tabindex="0" role="region" aria-label="Table of bitmaps">
        <table>
          <caption class="hide">Persistent bitmaps</caption>
          <thead>
            <tr>
              <th scope="col">Name</th>
              <th scope="col" class="end">One bit covers</th>
              <th scope="col">State</th>
            </tr>
          </thead>
          <tbody class="number">
            ${this.bitmaps.map(
              (bitmap) => html`<tr>
                <td class="name">${bitmap.name}</td>
                <td class="end" title=${exact(bitmap.granularity)}>${size(bitmap.granularity)}</td>
                <td>${bitmap.flags.map((flag) => FLAGS[flag] ?? flag).join(', ') || 'kept, not recording'}</td>
              </tr>`,
            )}
          </tbody>
        </table>
      </div>`;
  }
}

customElements.define('ox-bitmaps', Bitmaps);
