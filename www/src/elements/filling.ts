// <ox-filling>: how far a clone is that fills itself.

import { html, LitElement, nothing, type TemplateResult } from 'lit';

import type { Filling } from '../filling.js';
import { icons } from '../icons.js';
import { base } from '../styles.js';
import { trouble } from '../trouble.js';
import { percent, size } from '../words.js';

export class FillingBar extends LitElement {
  static override properties = { filling: { attribute: false } };
  declare filling: Filling | undefined;

  static override styles = base;

  override render(): TemplateResult | typeof nothing {
    const { filling } = this;
    if (!filling) return nothing;
    const { done, total, state, error } = filling;
    if (state === 'failed' && error) {
      return html`<div class="note warning">
        ${icons.warning}<span
          ><strong>The filling has paused.</strong> ${trouble(error)}
          <span class="row"><button @click=${() => this.dispatchEvent(new CustomEvent('fill-again', { bubbles: true, composed: true }))}>Go on filling</button></span></span
        >
      </div>`;
    }
    return html`<div class="running">
      <progress aria-label="Filling" max="1" .value=${total > 0 ? done / total : 0}></progress>
      <p class="small number muted">Filling in the background: ${size(done)} of ${size(total)} (${percent(done, total)})</p>
    </div>`;
  }
}

customElements.define('ox-filling', FillingBar);
