// <ox-safety>: the safety report: what the image would make a program do.

import type { Finding, SafetyReport } from 'oxcow';
import { css, html, LitElement, nothing, type TemplateResult } from 'lit';

import { icons } from '../icons.js';
import { base } from '../styles.js';
import { counted, hex } from '../words.js';

const VERDICTS = {
  safe: { icon: icons.ok, tone: 'ok', title: 'Nothing suspicious', text: 'An ordinary image. It names nothing that you did not choose and claims nothing impossible.' },
  caution: { icon: icons.warning, tone: 'warning', title: 'Look before you use it', text: 'Something here needs a decision of yours. What it is, is told below.' },
  unsafe: { icon: icons.danger, tone: 'danger', title: 'Do not trust this image', text: 'A program that believes what this image says could be misled or harmed. Here nothing it asks for is followed.' },
} as const;

/** Findings that only say that another file is wanted. */
const WANTS = ['backing-file', 'data-file'];

/** The verdict on an image about which nothing more is to be said than that it wants other files. */
const wanting = (supplied: boolean) => ({
  icon: supplied ? icons.ok : icons.warning,
  tone: supplied ? 'ok' : 'warning',
  title: supplied ? 'It uses another file, which you have chosen' : 'It asks for another file',
  text: 'Nothing else is suspicious. Which file it gets is your decision: nothing is opened by its name.',
});

const SEVERITIES = {
  note: { icon: icons.info, word: 'Note' },
  warning: { icon: icons.warning, word: 'Warning' },
  danger: { icon: icons.danger, word: 'Danger' },
} as const;

export class Safety extends LitElement {
  static override properties = { report: { attribute: false }, message: { attribute: false }, supplied: { attribute: false } };
  declare report: SafetyReport | undefined;
  /** Why there is no report. */
  declare message: string | undefined;
  /** All files that the image asks for are there. */
  declare supplied: boolean;

  static override styles = [
    base,
    css`
      .verdict {
        font-size: 0.9375rem;
      }
      .verdict strong {
        display: block;
      }
      li {
        display: grid;
        grid-template-columns: auto 1fr;
        gap: 0.5rem;
        padding: 0.5rem 0;
        border-bottom: 1px solid var(--line);
        font-size: 0.875rem;
      }
      li:last-child {
        border: 0;
        padding-bottom: 0;
      }
      li > svg {
        margin-top: 0.2rem;
      }
      li.note-row > svg {
        color: var(--muted);
      }
      li.warning > svg {
        color: var(--warn);
      }
      li.danger > svg {
        color: var(--danger);
      }
      .word {
        font-weight: 650;
      }
      .where {
        display: block;
        color: var(--muted);
        font-size: 0.8125rem;
      }
      .list {
        margin-top: 0.25rem;
      }
    `,
  ];

  override render(): TemplateResult {
    const { report } = this;
    if (!report) {
      return html`<p class="muted small">${this.message ? `There is no report: ${this.message}` : 'Reading…'}</p>`;
    }
    const serious = report.findings.filter(({ severity }) => severity !== 'note');
    const onlyWants = serious.length > 0 && serious.every(({ code }) => WANTS.includes(code));
    const verdict = onlyWants ? wanting(this.supplied) : VERDICTS[report.verdict];
    return html`
      <div class="note verdict ${verdict.tone}">${verdict.icon}<span><strong>${verdict.title}</strong>${verdict.text}</span></div>
      ${report.findings.length
        ? html`<ul class="list" role="list">
            ${report.findings.map((finding) => this.#finding(finding))}
          </ul>`
        : nothing}
    `;
  }

  #finding(finding: Finding): TemplateResult {
    const { icon, word } = SEVERITIES[finding.severity];
    const { place } = finding;
    const where = [
      place && place.structure.replaceAll('-', ' ').replace(/^l(\d) /, 'L$1 '),
      place?.index !== undefined && `entry ${place.index}`,
      place?.offset !== undefined && `byte ${hex(place.offset)}`,
      finding.count > 1 && `${counted(finding.count, 'place')} like this`,
    ].filter(Boolean);
    return html`<li class=${finding.severity === 'note' ? 'note-row' : finding.severity}>
      ${icon}<span
        ><span class="word">${word}</span>: ${finding.message}${where.length ? html`<span class="where number">${where.join(', ')}</span>` : nothing}</span
      >
    </li>`;
  }
}

customElements.define('ox-safety', Safety);
