// <ox-check>: checks the image's tables against each other, and repairs what it finds where that is wanted.

import type { CheckReport, DiskImage, OxcowError, RepairReport } from 'oxcow';
import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';

import { icons } from '../icons.js';
import { asError } from '../trouble.js';
import type { Session } from '../session.js';
import { base } from '../styles.js';
import { Task } from '../task.js';
import { count, counted, exact, percent, size } from '../words.js';
import { ask } from './dialog.js';

export class Check extends LitElement {
  static override properties = {
    session: { attribute: false },
    image: { attribute: false },
    format: { attribute: false },
    _report: { state: true },
    _error: { state: true },
    _done: { state: true },
    _stop: { state: true },
    _repaired: { state: true },
  };
  declare session: Session;
  declare image: DiskImage | undefined;
  declare format: string;
  declare _report: CheckReport | undefined;
  declare _error: OxcowError | undefined;
  /** How much is done, 0 to 1, while it runs. */
  declare _done: number | undefined;
  declare _stop: AbortController | undefined;
  declare _repaired: RepairReport | undefined;

  #repairing = new Task(this);

  static override styles = [
    base,
    css`
      dl {
        display: grid;
        grid-template-columns: max-content 1fr;
        gap: 0.25rem 1.25rem;
        font-size: 0.875rem;
      }
      dt {
        color: var(--muted);
      }
      .messages {
        max-height: 14rem;
        overflow: auto;
        padding: 0.625rem 0.875rem;
        background: var(--sunken);
        border-radius: 8px;
        font: 0.8125rem/1.5 var(--mono);
      }
    `,
  ];

  override willUpdate(changed: PropertyValues<this>): void {
    if (!changed.has('image')) return;
    this._stop?.abort();
    this._report = undefined;
    this._error = undefined;
    // A repair of a marked image opens it anew.
    if (!this.#repairing.running) this._repaired = undefined;
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this._stop?.abort();
  }

  override render(): TemplateResult {
    if (this.format === 'raw') {
      return html`<p class="muted small">A raw image has no tables, so there is nothing that could be inconsistent.</p>`;
    }
    return html`<div class="stack">
      <p class="small muted">
        Reads all tables and compares them: is every piece that is in use counted as used, and none used twice? Nothing is changed.
      </p>
      ${this._stop
        ? html`<div class="running">
            <progress aria-label="Checking" max="1" .value=${this._done ?? 0}></progress>
            <div class="row">
              <button @click=${() => this._stop?.abort()}>Cancel</button>
              <span class="small number">${percent(Math.floor((this._done ?? 0) * 1000), 1000)} checked</span>
            </div>
            <p class="hide" role="status">${Math.floor((this._done ?? 0) * 4) * 25}% checked</p>
          </div>`
        : this.#repairing.running
        ? this.#repairing.progress()
        : html`<button class=${this._report ? '' : 'primary'} @click=${() => this.#check()}>${this._report ? 'Check again' : 'Check this image'}</button>`}
      <div role="status">${this.#outcome()}</div>
      ${this._repaired ? this.#repaired(this._repaired) : nothing} ${this.#repairing.problem('Not repaired')}
      ${this._report && !this.#repairing.running ? this.#remedy(this._report) : nothing} ${this._report ? this.#details(this._report) : nothing}
    </div>`;
  }

  #outcome(): TemplateResult | typeof nothing {
    const report = this._report;
    if (this._error) {
      return this._error.code === 'cancelled'
        ? html`<p class="note">${icons.info}<span>Cancelled. The image is as it was.</span></p>`
        : html`<p class="note danger">${icons.danger}<span><strong>The check could not be finished.</strong> ${this._error.message}</span></p>`;
    }
    if (!report) return nothing;
    const corruptions = (report.corruptions ?? 0) + report.checkErrors;
    const leaks = report.leaks ?? 0;
    if (corruptions > 0) {
      return html`<p class="note danger">
        ${icons.danger}<span
          ><strong>${counted(corruptions, 'error')} found.</strong> Data may be damaged. Do not write to this image before it is
          repaired${leaks > 0 ? html`; ${counted(leaks, 'cluster is', 'clusters are')} also marked as used though nothing uses them` : nothing}.</span
        >
      </p>`;
    }
    if (leaks > 0) {
      return html`<p class="note warning">
        ${icons.warning}<span
          ><strong>${counted(leaks, 'leaked cluster')}.</strong> The content is intact; ${leaks === 1 ? 'it is' : 'they are'} marked as used though
          nothing uses ${leaks === 1 ? 'it' : 'them'}, which wastes space.</span
        >
      </p>`;
    }
    return html`<p class="note ok">${icons.ok}<span><strong>No errors.</strong> The tables agree with each other.</span></p>`;
  }

  /** What can be done about what was found. */
  #remedy(report: CheckReport): TemplateResult | typeof nothing {
    const errors = report.corruptions ?? 0;
    const leaks = report.leaks ?? 0;
    if (errors + leaks === 0) return nothing;
    if (!this.session.stored) {
      return html`<p class="small muted">A dropped file is never changed. Import an exact copy of it: that one can be repaired.</p>`;
    }
    if (this.session.incomplete) return html`<p class="small muted">It can be repaired when the file that it is made over is there.</p>`;
    return html`<div class="row">
      ${leaks > 0 ? html`<button @click=${() => this.#repair('leaks', report)}>Give back ${counted(leaks, 'leaked cluster')}…</button>` : nothing}
      ${errors > 0 ? html`<button @click=${() => this.#repair('all', report)}>Repair ${counted(errors, 'error')}…</button>` : nothing}
    </div>`;
  }

  async #repair(what: 'leaks' | 'all', report: CheckReport): Promise<void> {
    const errors = report.corruptions ?? 0;
    const leaks = report.leaks ?? 0;
    const shown = report.messages.slice(0, 100);
    const answer = await ask({
      title: what === 'leaks' ? `Give back ${counted(leaks, 'leaked cluster')}?` : `Repair ${counted(errors, 'error')}?`,
      ...(what === 'all' && {
        lost: 'Table entries that cannot be right are removed, so that what they pointed to reads as zeros or as what is below. Download the image first if you want to try other tools.',
      }),
      safe: 'Nothing is repaired in place: should the computer stop in the middle, the image is as it was, or repaired. What is certain stays.',
      more: html`<p class="small">${
          what === 'leaks'
            ? `What will be done: ${counted(leaks, 'cluster')} that nothing uses ${leaks === 1 ? 'is' : 'are'} marked as free. The content is not touched.`
            : `What will be done: the reference counts and tables are made to agree with what is in use, for ${counted(errors, 'error')}${leaks > 0 ? ` and ${counted(leaks, 'leaked cluster')}` : ''}. This is what the check found:`
        }</p>
        ${shown.length
          ? html`<ul class="messages" tabindex="0" role="list" aria-label="What will be repaired">
              ${shown.map((message) => html`<li>${message}</li>`)}
              ${report.messages.length > shown.length ? html`<li>… and ${count(report.messages.length - shown.length)} more</li>` : nothing}
            </ul>`
          : nothing}`,
      action: what === 'leaks' ? 'Give them back' : 'Repair',
    });
    if (!answer) return;
    this._repaired = undefined;
    const repaired = await this.#repairing.run('Repairing', (watch) => this.session.repair(what, watch));
    if (!repaired) return;
    this._report = undefined;
    this._repaired = repaired;
  }

  #repaired(report: RepairReport): TemplateResult {
    const left = (report.corruptions ?? 0) + report.checkErrors;
    const fixed = [
      report.corruptionsFixed ? counted(report.corruptionsFixed, 'error') : '',
      report.leaksFixed ? counted(report.leaksFixed, 'leaked cluster') : '',
    ].filter(Boolean);
    return left > 0
      ? html`<p class="note warning" role="status">
          ${icons.warning}<span><strong>Repaired in part.</strong> ${counted(left, 'error is', 'errors are')} left that nobody can decide for you.</span>
        </p>`
      : html`<p class="note ok" role="status">
          ${icons.ok}<span><strong>Repaired.</strong> ${fixed.length ? `${fixed.join(' and ')} put right. ` : ''}The tables agree with each other.</span>
        </p>`;
  }

  #details(report: CheckReport): TemplateResult {
    const { totalClusters: total = 0, allocatedClusters: allocated = 0 } = report;
    return html`<dl class="number">
        ${total > 0
          ? html`<dt>In use</dt>
              <dd>${count(allocated)} of ${counted(total, 'cluster')} (${percent(allocated, total)})</dd>
              <dt>Fragmented</dt>
              <dd>${count(report.fragmentedClusters ?? 0)} (${percent(report.fragmentedClusters ?? 0, allocated)} of those in use)</dd>
              <dt>Compressed</dt>
              <dd>${count(report.compressedClusters ?? 0)} (${percent(report.compressedClusters ?? 0, allocated)} of those in use)</dd>`
          : nothing}
        ${report.imageEndOffset === undefined
          ? nothing
          : html`<dt>Used part of the file</dt>
              <dd>${size(report.imageEndOffset)} (${exact(report.imageEndOffset)})</dd>`}
      </dl>
      ${report.messages?.length
        ? html`<ul class="messages" tabindex="0" role="list" aria-label="What was found">
            ${report.messages.map((message) => html`<li>${message}</li>`)}
          </ul>`
        : nothing}`;
  }

  async #check(): Promise<void> {
    const { image } = this;
    if (!image) return;
    const stop = new AbortController();
    this._stop = stop;
    this._done = 0;
    this._report = undefined;
    this._repaired = undefined;
    this._error = undefined;
    try {
      const report = await image.check({
        signal: stop.signal,
        onProgress: (done, total) => (this._done = total > 0 ? done / total : 0),
      });
      if (image === this.image) this._report = report;
    } catch (error) {
      if (image === this.image) this._error = asError(error);
    } finally {
      if (this._stop === stop) this._stop = undefined;
      this.dispatchEvent(new CustomEvent('activity', { bubbles: true, composed: true }));
    }
  }
}

customElements.define('ox-check', Check);
